"""Shards, ledgers, exported folders, pending files, recorded rollouts and schemas that were changed anywhere.

They are refused, or read as they were.
"""

import json
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st

from cli.yaml_files import read_yaml
from lightning_modules.hc_rlhf.ledger import Ledger
from lightning_modules.hc_rlhf.verify import CERTIFICATE, file_hashes, verify
from rewards.schemas import fits, schema_fault
from support.checkpoints import damage, unreadable, write_manifest
from support.errors import ConfigError
from tests.fuzz.shares import cases
from tests.fuzz.test_completions import JSON
from tracking.pending_file import Pending, read_pending, write_pending

#: (place as a fraction, bytes that are taken out, bytes that are put in)
PUT_IN = st.sampled_from([b"..", b"/", b"\n", b"{", b"9" * 400, b"c"])
CHANGES = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=20) | PUT_IN)


def changed(content, change):
    place, out, put = change
    at = int(place * len(content))
    return content[:at] + put + content[at + out :]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "whole.ckpt"
    dcp.save({"a": torch.arange(40.0), "step": 5, "text": "x" * 50}, checkpoint_id=folder, no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6", "loops": {"n": 1}}, folder / "meta.pt")
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@cases("shards")
@given(
    name=st.sampled_from([".metadata", "__0_0.distcp", "meta.pt", "manifest.json"]),
    change=CHANGES,
    manifest=st.booleans(),
)
def test_shards(shards, name, change, manifest):
    folder = shards.with_name("changed.ckpt")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(shards, folder)
    if manifest:
        write_manifest(folder)
    if not (folder / name).is_file():
        return
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(changed(before, change))
    is_same = (folder / name).read_bytes() == before
    refused = damage(folder) is not None or unreadable(folder) is not None
    assert not (is_same and refused) and (is_same or not manifest or refused or name == "manifest.json")
    if not refused:
        state = {"a": torch.zeros(40), "step": 0, "text": ""}
        dcp.load(state, checkpoint_id=folder, no_dist=True)
        assert torch.equal(state["a"], torch.arange(40.0)) or not manifest


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    made = Ledger(["a", "b"], str(tmp_path / "ledger"))
    with made.locked():
        for number in range(3):
            made.begin(f"policy {number}", "question", 0.05, 5)
            made.record(f"policy {number}", "question", {"verdict": "SAFE", "ucb": 0.1})
    return made


@cases("ledgers")
@given(change=CHANGES)
def test_ledgers(ledger, change):
    whole, events = ledger.path.read_bytes(), ledger.journals[0].events()
    try:
        ledger.path.write_bytes(changed(whole, change))
        try:
            assert ledger.journals[0].events()[: len(events)] == events, "a test was forgotten"
        except ConfigError as error:
            assert str(ledger.path) in str(error)
    finally:
        ledger.path.write_bytes(whole)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "policy"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "sub" / "template.jinja").write_text("{{ x }}")
    facts = {"verdict": "SAFE", "ucb": 0.1, "threshold": 0.5, "files": file_hashes(folder)}
    (folder / CERTIFICATE).write_text(json.dumps(facts))
    return folder


@cases("exported", 2)
@given(
    name=st.sampled_from(["config.json", "sub/template.jinja", "new.txt", "sub/new"]),
    content=st.binary(max_size=30),
    remove=st.booleans(),
)
def test_exported_folders(exported, name, content, remove):
    folder = exported.with_name("changed")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exported, folder)
    before = (folder / name).read_bytes() if (folder / name).is_file() else None
    if remove:
        (folder / name).unlink(missing_ok=True)
    else:
        (folder / name).write_bytes(content)
    after = (folder / name).read_bytes() if (folder / name).is_file() else None
    try:
        verify(folder)
    except ConfigError as error:
        assert str(folder) in str(error)
    else:
        assert before == after, "another policy passes as the certified one"


@cases("exported", 2)
@given(change=CHANGES, value=JSON)
def test_certificates(exported, change, value):
    folder = exported.with_name("forged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(exported, folder)
    whole = (folder / CERTIFICATE).read_bytes()
    for content in (
        changed(whole, change),
        json.dumps(value).encode(),
        json.dumps({"verdict": "SAFE", "files": value}).encode(),
    ):
        (folder / CERTIFICATE).write_bytes(content)
        try:
            assert verify(folder)["verdict"] == "SAFE"
        except ConfigError as error:
            assert str(folder) in str(error)


@cases("pending")
@given(change=CHANGES)
def test_pending_files(tmp_path, change):
    writes = [("set_tag", ["r", "a", "b"], {}), ("log_metric", ["r", "x", 1.0], {"step": 1})]
    write_pending(path := tmp_path / "run.jsonl", Pending("sqlite:///x.db", writes, {}, {}))
    path.write_bytes(changed(path.read_bytes(), change))
    try:
        pending = read_pending(path)
    except ConfigError as error:
        assert str(path) in str(error)
    else:
        assert {method for method, _, _ in pending.writes} <= {"set_tag", "log_metric"}


KEYWORDS = "$ref $id $schema $defs a type pattern properties items not anyOf enum minimum".split()
SCHEMAS = st.recursive(
    JSON | st.sampled_from(["#", "#/$defs/a", "http://127.0.0.1:9/x", "(", "^(a+)+$", "object", "string"]),
    lambda inner: st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)


@cases("schemas")
@given(schema=SCHEMAS, value=JSON)
def test_schemas(schema, value):
    text = json.dumps(schema)
    fault = schema_fault(text)
    assert isinstance(fault, str)
    if not fault:
        try:
            assert fits(text, json.dumps(value, allow_nan=False)) in (True, False)
        except (ValueError, RecursionError):
            pass  # NaN is no JSON; a schema that refers to itself is a wrong answer in the process


@cases("yaml")
@given(st.text(alphabet="ab:-[]{}&*!? \n\t#|>'\"1", max_size=60))
def test_yaml_files(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    try:
        read_yaml(path)
    except ConfigError as error:
        assert str(path) in str(error)
