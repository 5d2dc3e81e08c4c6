"""A checkpoint is data: what would execute something is refused by name, and nothing is executed."""

import copy
import os
import pickle
import shutil
import zipfile

import lightning
import pytest
import torch
import torch.distributed.checkpoint as dcp
from jsonargparse import Namespace
from torch.distributed.checkpoint import CheckpointException

import callbacks
from callbacks import RolloutCheckpoint
from cli.resume import refuse_unreadable
from main import main
from support.checkpoints import damage, unreadable, write_manifest
from support.errors import ConfigError
from tests.helpers.payload import Payload
from tests.test_cli import short


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkpoint_with_a_payload_is_refused_before_anything_starts(here, reasoner):
    for number, content in enumerate(
        [{"state_dict": Payload(here / "executed"), "pytorch-lightning_version": "2.6"}, [1, 2], {"state_dict": {}}]
    ):
        file = here / f"{number}.ckpt"
        torch.save(content, file)
        assert damage(file) is None, "the file itself is whole"
        with pytest.raises(
            ConfigError, match=rf"{number}\.ckpt cannot be read as plain data, and nothing in it was executed"
        ):
            main(["fit", *short(reasoner, "--trainer.logger=false"), f"--ckpt_path={file}"])
    assert not (here / "executed").exists() and not (here / "runs").exists()


def test_what_is_no_archive_is_refused(here, reasoner):
    """torch.load also reads a bare pickle and a tar file."""
    (here / "bare.ckpt").write_bytes(pickle.dumps(Payload(here / "executed")))
    torch.save({"x": Payload(here / "executed")}, here / "old.ckpt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(here / "zip.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(here / "executed")))
        archive.writestr("archive/version", "3\n")
    for name in ("bare", "old", "zip", "missing"):
        with pytest.raises(ConfigError, match=rf"{name}\.ckpt"):
            main(["validate", *short(reasoner, "--trainer.logger=false")[:1], f"--ckpt_path={here}/{name}.ckpt"])
    assert not (here / "executed").exists()


SHARDED = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(2, dtype=torch.bfloat16),
    "step": 5,
    "deep": {"x": [1, "a"]},
}


def shards(folder, content=SHARDED):
    """A folder as FSDP2 leaves it, without a manifest."""
    dcp.save(content, checkpoint_id=folder, no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6"}, folder / "meta.pt")
    return folder


def loaded(folder):
    state = {"a": torch.zeros(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16), "step": 0, "deep": {"x": [0, ""]}}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_values_in_shards_are_data_too(here):
    """PyTorch unpickles every value of a shard that is not a tensor."""
    folder = shards(here / "shards.ckpt", {"a": torch.zeros(2), "step": Payload(here / "executed")})
    for manifest in (False, True):
        if manifest:
            write_manifest(folder)
        assert damage(folder) is None and "UnpicklingError" in unreadable(folder)
        with pytest.raises(ConfigError, match="shards.ckpt cannot be read as plain data"):
            refuse_unreadable(Namespace(ckpt_path=str(folder), weights_only=True))
    assert not (here / "executed").exists()
    with pytest.raises((FileNotFoundError, TypeError, AttributeError, RuntimeError, CheckpointException)):
        dcp.load({"a": torch.zeros(2), "step": 0}, checkpoint_id=folder, no_dist=True)
        raise RuntimeError("loaded")
    assert (here / "executed").exists(), "otherwise this test would show nothing"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "..", "", "sub/x", ".", b"x", 7])
def test_an_index_names_files_of_its_folder_alone(here, name):
    folder = shards(here / "shards")
    (here / "elsewhere").write_bytes((folder / "__0_0.distcp").read_bytes())
    (folder / "sub").mkdir()
    (folder / "sub" / "x").write_bytes((folder / "__0_0.distcp").read_bytes())
    index = pickle.loads((folder / ".metadata").read_bytes())
    for piece in index.storage_data.values():
        piece.relative_path = name
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    assert "not a file of its folder" in damage(folder) and "not a file of its folder" in unreadable(folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("manifest", [False, True])
def test_shards_that_are_not_whole_are_found_before_anything_is_loaded(here, manifest):
    def changed(name, change):
        folder = here / f"changed_{name.strip('._')}.ckpt"
        shutil.rmtree(folder, ignore_errors=True)
        shards(folder)
        if manifest:
            write_manifest(folder)
        assert damage(folder) is None and unreadable(folder) is None and loaded(folder)["step"] == 5
        change(folder / name)
        return damage(folder)

    def flip(path):
        content = bytearray(path.read_bytes())
        content[content.index(b"\x00\x00\x80\x3f") if b"\x00\x00\x80\x3f" in content else len(content) // 2] ^= 1
        path.write_bytes(content)

    def link(path):
        path.rename(here / "moved")
        path.symlink_to(here / "moved")

    def pipe(path):
        path.unlink()
        os.mkfifo(path)

    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    for change in (cut, flip, link, pipe, os.remove):
        for name in ("__0_0.distcp", "meta.pt"):
            assert changed(name, change) is not None, (change, name)
        if manifest or change is not link:
            assert changed(".metadata", change) is not None or not manifest and change is flip
    if manifest:
        assert "not in its manifest" in changed("more.distcp", lambda path: path.write_text("x"))


def test_a_single_file_is_no_pipe(here):
    os.mkfifo(here / "rollout_000001.ckpt")
    assert "not a regular file" in damage(here / "rollout_000001.ckpt")
    assert "not a regular file" in unreadable(here / "rollout_000001.ckpt")


FOREIGN = ["../../../../somewhere", "/somewhere", "somewhere", "rollout_1.ckpt/../../somewhere", "", ".", "..", None, 7,
           "rollout_000001.ckpt\n", "rollout_000001.partial", "rollout_٣٣٣٣٣٣.ckpt"]  # fmt: skip


def test_a_checkpoint_names_no_file_to_delete(here):
    callback = RolloutCheckpoint(keep=1)
    callback.load_state_dict({"saved": [*FOREIGN, "rollout_000001.ckpt"]})
    assert callback.saved == ["rollout_000001.ckpt"]


def test_no_state_sets_an_attribute_that_it_names():
    """Every callback with a state: what it does not write itself does not become an attribute."""
    made = {
        "FixedKL": (0.1,), "AdaptiveKL": (0.1,), "ReferenceReset": (2,), "OneShot": (["a"],), "ExportPolicy": ("x",),
        "RunFacts": (None, None), "StageSchedule": ([callbacks.Stage(0)],), "ScheduledKL": (0.1, 0.2, 3),
    }  # fmt: skip
    tried = set()
    for name in callbacks.__all__:
        kind = getattr(callbacks, name)
        if not (isinstance(kind, type) and issubclass(kind, lightning.Callback)) or "load_state_dict" not in vars(kind):
            continue
        callback = kind(*made.get(name, ()))
        state = copy.deepcopy(callback.state_dict())
        callback.load_state_dict(state | {"on_train_start": "x", "folder": "/", "path": "/", "planted": 1})
        assert not {"on_train_start", "planted"} & set(vars(callback)) and vars(callback).get("folder") != "/", name
        tried.add(name)
    assert {"ReferenceReset", "RolloutCheckpoint", "DifficultyLedger", "AdaptiveKL", "Doctor"} <= tried


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_index_of_shards_is_data_too(here):
    shards(here / "shards")
    assert damage(here / "shards") is None and unreadable(here / "shards") is None
    for hidden in (Payload(here / "executed"), print, torch.load, os.system, shutil.rmtree):
        (here / "shards" / ".metadata").write_bytes(pickle.dumps(hidden))
        assert "its index asks for" in unreadable(here / "shards")
    for text in (
        b"ctorch.distributed.checkpoint.filesystem\nos.system\n(S'touch executed'\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93.",
    ):
        (here / "shards" / ".metadata").write_bytes(text)
        assert "its index asks for" in unreadable(here / "shards")
    assert not (here / "executed").exists()


def test_weights_of_another_shape_are_refused(here, reasoner, tmp_path_factory):
    from assets.make_untrained import reasoner_tokenizer
    from tests.conftest import save_tiny

    main(["fit", *short(reasoner, "--trainer.logger=false", "--trainer.max_steps=1", "--trainer.limit_val_batches=0")])
    file = here / "runs/local/checkpoints/rollout_000001.ckpt"
    assert unreadable(file) is None
    saved = torch.load(file, weights_only=True)
    saved["state_dict"]["policy.model.model.norm.weight"] = torch.ones(5)
    torch.save(saved, file)
    with pytest.raises(ConfigError, match=r"norm.weight has the shape \(5,\), this model's \(32,\)"):
        main(
            [
                "validate",
                *short(reasoner, "--trainer.logger=false")[:1],
                f"--model.policy.model={reasoner}",
                f"--ckpt_path={file}",
            ]
        )
    larger = save_tiny(tmp_path_factory.mktemp("larger"), reasoner_tokenizer(), layers=3)
    with pytest.raises(ConfigError, match="another policy or LoRA setting"):
        main(
            [
                "validate",
                *short(larger, "--trainer.logger=false")[:1],
                f"--model.policy.model={larger}",
                f"--ckpt_path={file}",
            ]
        )


def test_states_of_another_form_are_one_paragraph(here, reasoner):
    """Plain data, whole and readable, but not what this version writes."""
    arguments = ["fit", *short(reasoner, "--trainer.logger=false", "--trainer.limit_val_batches=0")]
    main([*arguments, "--trainer.max_steps=1"])
    saved = torch.load("runs/local/checkpoints/rollout_000001.ckpt", weights_only=True)
    summary = next(name for name in saved["callbacks"] if "RunSummary" in name)
    for part, changed in {
        "RolloutCheckpoint": {"callbacks": saved["callbacks"] | {"RolloutCheckpoint": {"x": 1}}},
        "RunSummary": {"callbacks": saved["callbacks"] | {summary: {"first": 5}}},
        "GRPO": {"seen_prompts": 5},
    }.items():
        assert changed.keys() <= saved.keys() and ("callbacks" not in changed or part in str([*saved["callbacks"]]))
        torch.save(saved | changed, here / "changed.ckpt")
        with pytest.raises(ConfigError, match=f"a state of {part} that this version does not write .*--ckpt_path"):
            main([*arguments, "--trainer.max_steps=2", f"--ckpt_path={here}/changed.ckpt"])


DEEP = "[" * 100_000


def test_json_that_is_nested_too_deeply_is_refused_by_every_reader(here):
    """`json.loads` raises RecursionError for it, which is no ValueError."""
    from callbacks.one_shot import read_history
    from lightning_modules.hc_rlhf import Ledger
    from policies.classifier import LABELS, _saved_labels
    from policies.scorer import load_facts
    from rewards import ReasoningGymScore
    from support.files import parse_json
    from support.locks import FolderLock
    from support.seen_prompts import FILE, SeenPrompts
    from tracking.pending_file import read_pending

    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    names = ("pass_rates.jsonl", "pending.jsonl", "config.json", LABELS, "facts.json", FILE, "journal.jsonl")
    for name in names:
        (here / name).write_text(DEEP + "\n")
    for read in (
        lambda: read_history(here / "pass_rates.jsonl"),
        lambda: read_pending(here / "pending.jsonl"),
        lambda: _saved_labels(here / LABELS),
        lambda: load_facts(str(here)),
        lambda: SeenPrompts.of_model(here, "a model"),
        lambda: Ledger(["a"], str(here)).tests(),
        lambda: ReasoningGymScore().check_columns({"id": "r", "prompt": "?", "entry": DEEP}),
    ):
        with pytest.raises(ConfigError):
            read()
    (here / ".checkpoints.lock").write_text(DEEP)
    FolderLock(here / "checkpoints").check()
