"""A checkpoint that was cut or changed anywhere is refused, or loads exactly what was saved."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli.resume import find_checkpoint, refuse_unreadable
from support.checkpoints import damage, unreadable
from support.errors import ConfigError
from tests.fuzz.shares import cases

SAVED = {
    "pytorch-lightning_version": "2.6",
    "module": "GRPO",
    "loops": {"fit_loop": {"state": [1, 2]}},
    "advantage": {},
    "text": "x" * 300,
    "state_dict": {f"w{i}": torch.arange(40.0) * i for i in range(4)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "whole.ckpt"
    torch.save(SAVED, path)
    return path


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def judge(path):
    """Does what main.py does with --ckpt_path, then what Lightning does. Returns whether the file was loaded."""
    from jsonargparse import Namespace

    config = Namespace(ckpt_path=str(path), weights_only=True)
    try:
        find_checkpoint(config, "fit")
        refuse_unreadable(config)
    except ConfigError as error:
        assert str(path) in str(error)
        assert damage(path) is not None or unreadable(path) is not None
        return False
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    assert same(loaded, SAVED), "half a run was loaded"
    return True


def test_the_whole_one_loads(whole):
    assert judge(whole)


@cases("checkpoints", 3)
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit(whole, place, bit):
    content = bytearray(whole.read_bytes())
    content[min(int(place * len(content)), len(content) - 1)] ^= 1 << bit
    path = whole.with_name("flipped.ckpt")
    path.write_bytes(content)
    judge(path)


@cases("checkpoints", 3)
@given(kept=st.floats(0, 0.9999), tail=st.binary(max_size=60))
def test_a_cut_file(whole, kept, tail):
    content = whole.read_bytes()
    path = whole.with_name("cut.ckpt")
    path.write_bytes(content[: int(kept * len(content))] + tail)
    judge(path)


@cases("checkpoints", 3)
@given(start=st.floats(0, 1), length=st.integers(1, 400), noise=st.binary(min_size=1, max_size=400), drop=st.booleans())
def test_a_hole_or_a_foreign_piece(whole, start, length, noise, drop):
    content = whole.read_bytes()
    at = int(start * len(content))
    path = whole.with_name("hole.ckpt")
    path.write_bytes(content[:at] + (b"" if drop else noise) + content[at + length :])
    judge(path)


def test_a_pickle_of_nothing_known(whole):
    path = whole.with_name("other.ckpt")
    for content in (b"", b"\x80", pickle.dumps(SAVED["loops"]), b"PK\x05\x06" + b"\0" * 18):
        path.write_bytes(content)
        assert not judge(path)
