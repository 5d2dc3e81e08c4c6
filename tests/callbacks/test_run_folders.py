"""A run's folder is its own, one process at a time writes it, and the newest state in it is found without clocks."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from callbacks import RolloutCheckpoint
from cli.resume import changed_settings, last_checkpoint
from support.checkpoints import InPlaceCheckpointIO, damage, newest_first, sweep
from support.errors import ConfigError
from support.files import remove_unfinished
from support.locks import FolderLock
from tests.callbacks.test_kl_and_checkpoints import run
from tracking.runs import run_folder, write_number

HOLD = """
import sys, pathlib
from support.locks import FolderLock
FolderLock(pathlib.Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""


def whole(path, times=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"x": path.name}, path)
    os.utime(path, (times, times))


def configured(root, name, number=None, time=0):
    folder = root / name
    whole(folder / "checkpoints/rollout_000001.ckpt")
    (folder / "config_fit.yaml").write_text("model: {class_path: lightning_modules.GRPO}")
    os.utime(folder / "config_fit.yaml", (time, time))
    if number is not None:
        (folder / ".run.json").write_text(json.dumps({"number": number}))
    return folder


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    folder = tmp_path / "run/checkpoints"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=rf"checkpoints is being written by another run: process {holder.pid} on "):
        FolderLock(folder).take()
    holder.kill()  # however it ends
    holder.communicate()
    lock = FolderLock(folder)
    lock.take()
    lock.release()
    (tmp_path / "run/.checkpoints.lock").write_text('{"pid": "x"')  # what it holds is not trusted
    FolderLock(folder).check()


def test_last_is_refused_while_its_run_is_going_on(reasoner, tmp_path, monkeypatch):
    from main import main
    from tests.test_cli import short

    monkeypatch.chdir(tmp_path)
    arguments = ["fit", *short(reasoner, "--trainer.logger=false", "--trainer.limit_val_batches=0")]
    main([*arguments, "--trainer.max_steps=1"])
    folder = "runs/local/checkpoints"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    for path in ("last", f"{folder}/rollout_000001.ckpt"):
        with pytest.raises(ConfigError, match=f"is being written by another run: process {holder.pid}"):
            main([*arguments, "--trainer.max_steps=2", f"--ckpt_path={path}"])
    holder.communicate()
    main([*arguments, "--trainer.max_steps=2", "--ckpt_path=last"])
    main([*arguments, "--trainer.max_steps=1"])
    main([*arguments, "--trainer.max_steps=3", f"--ckpt_path={folder}/rollout_000002.ckpt"])
    found = {str(path) for path in Path("runs").glob("*/checkpoints/*")}
    assert found == {f"{folder}/rollout_{n:06d}.ckpt" for n in (2, 3)} | {
        "runs/local_2/checkpoints/rollout_000001.ckpt"
    }
    assert last_checkpoint(Path("runs"), "lightning_modules.GRPO").name == "rollout_000003.ckpt", "started last"


def test_runs_without_a_logger_have_folders_of_their_own(reasoner, tmp_path):
    for name in ("local", "local_2", "local_3"):
        run(reasoner, tmp_path, [RolloutCheckpoint()], rollouts=1)
        assert (tmp_path / name / "checkpoints/rollout_000001.ckpt").is_file()


def test_other_loggers_have_folders_of_their_own(tmp_path):
    folders = []
    for name in ("a", "a", "b"):
        logger = CSVLogger(tmp_path, name=name)
        folders.append(run_folder(L.Trainer(logger=logger, default_root_dir=tmp_path, enable_progress_bar=False)))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3


def test_the_newest_checkpoint_has_most_rollouts_whatever_the_clock_says(tmp_path):
    for number, time in ((2, 900), (9, 100), (10, 50), (100000, 10)):
        whole(tmp_path / f"rollout_{number:06d}.ckpt", time)
    whole(tmp_path / "rollout_000011.ckpt.bak", 999)
    assert [path.name[8:14] for path in newest_first(tmp_path)] == ["100000", "000010", "000009", "000002"]


def test_the_newest_run_was_started_last_whatever_the_clock_says(tmp_path):
    method = "lightning_modules.GRPO"
    configured(tmp_path, "first", 1, time=900)
    configured(tmp_path, "second", 2, time=100)
    configured(tmp_path, "earlier_version", time=950)
    configured(tmp_path, "foreign", "9" * 30, time=950)
    assert last_checkpoint(tmp_path, method).parents[1].name == "second"
    write_number(tmp_path / "first")
    assert last_checkpoint(tmp_path, method).parents[1].name == "first"


PARTS = {
    "A": {"rewards": [{"class_path": "rewards.Format"}], "bound": None},
    "more rewards": {
        "rewards": [{"class_path": "rewards.Format"}, {"class_path": "rewards.ExactAnswer"}],
        "bound": None,
    },
    "fewer rewards": {"rewards": [], "bound": None},
    "a part instead of none": {
        "rewards": [{"class_path": "rewards.Format"}],
        "bound": {"class_path": "objectives.StudentT"},
    },
    "another class": {"rewards": [{"class_path": "rewards.ExactAnswer"}], "bound": None},
}


@pytest.mark.parametrize("earlier, newest", [("A", other) for other in PARTS] + [(other, "A") for other in PARTS])
def test_the_run_with_the_same_parts_goes_on(tmp_path, capsys, earlier, newest):
    method = "lightning_modules.GRPO"
    for number, (name, parts) in enumerate([("earlier", PARTS[earlier]), ("newest", PARTS[newest])], 1):
        model = {"class_path": method, "init_args": parts}
        (configured(tmp_path, name, number) / "config_fit.yaml").write_text(yaml.safe_dump({"model": model}))
    config = Namespace(model={"class_path": method, "init_args": PARTS[earlier]})
    alike = "newest" if earlier == newest else "earlier"
    assert last_checkpoint(tmp_path, method, config).parents[1].name == alike


def test_a_changed_number_of_parts_is_said():
    one, two = ({"model": {"init_args": PARTS[name]}} for name in ("A", "more rewards"))
    name = "model.init_args.rewards.1.class_path"
    assert changed_settings(one, two)[name] == (None, "rewards.ExactAnswer")
    assert changed_settings(two, one)[name] == ("rewards.ExactAnswer", None)


@pytest.mark.parametrize("named", ["model.ckpt", "elsewhere/model.ckpt", "/elsewhere/checkpoints/rollout_000001.ckpt"])
def test_a_run_that_began_from_a_checkpoint_of_no_run_names_it(tmp_path, named):
    """It died before its own first checkpoint, and `last` cannot know which run it belongs to."""
    folder = configured(tmp_path, "run", 1)
    (folder / "checkpoints/rollout_000001.ckpt").unlink()
    (folder / "config_fit.yaml").write_text(f"model: {{class_path: lightning_modules.GRPO}}\nckpt_path: {named}\n")
    with pytest.raises(ConfigError, match=f"Continue with --ckpt_path {named}"):
        last_checkpoint(tmp_path, "lightning_modules.GRPO")


def test_a_damaged_folder_of_shards_gives_way_to_the_one_before(tmp_path):
    folder = configured(tmp_path, "run", 1) / "checkpoints"
    (folder / "rollout_000002.ckpt").mkdir()
    (folder / "rollout_000002.ckpt/.metadata").write_bytes(b"\x80")
    assert last_checkpoint(tmp_path, "lightning_modules.GRPO") == folder / "rollout_000001.ckpt"


def test_what_a_kill_leaves_is_removed_at_the_next_start(reasoner, tmp_path):
    folder = tmp_path / "local/checkpoints"
    run(reasoner, tmp_path, [RolloutCheckpoint()], rollouts=1)
    (folder / "rollout_000002.partial").write_bytes(b"half")
    (folder / "rollout_000003.partial").mkdir()
    (folder / "rollout_000001.replaced").write_bytes(b"older")
    (folder / "rollout_000004.replaced").mkdir()
    (folder / "notes.partial.txt").touch()
    (tmp_path / "local/config_fit.yamlabcd.tmp").touch()
    resumed = tmp_path / "local/checkpoints/rollout_000001.ckpt"
    run(reasoner, tmp_path, [RolloutCheckpoint(keep=None)], rollouts=2, ckpt_path=resumed)
    names = {path.name for path in folder.iterdir()}
    assert names == {f"rollout_{n:06d}.ckpt" for n in (1, 2, 4)} | {"notes.partial.txt"}, "4 was being replaced"
    assert damage(folder / "rollout_000001.ckpt") is None and not list(tmp_path.glob("local/*.tmp"))


def test_leftovers_are_removed_as_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/rollout_000001.partial").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run/x.tmp").symlink_to(tmp_path / "elsewhere")
    sweep(tmp_path / "run")
    remove_unfinished(tmp_path / "run")
    assert (tmp_path / "elsewhere/file").exists() and not (tmp_path / "run/rollout_000001.partial").exists()


def test_a_checkpoint_is_written_beside_its_place(reasoner, tmp_path, monkeypatch):
    """Not in /tmp, which may be small; the first error of the disk is what is said."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no_such_folder"))
    run(reasoner, tmp_path, [RolloutCheckpoint()], rollouts=1)
    assert damage(tmp_path / "local/checkpoints/rollout_000001.ckpt") is None
    with pytest.raises(OSError, match="No space left") as raised:
        InPlaceCheckpointIO().save_checkpoint({"x": torch.zeros(10**6)}, Path("/dev/full"))
    assert raised.value.errno == errno.ENOSPC


def test_a_folder_takes_the_place_of_a_file_and_a_file_that_of_a_folder(tmp_path):
    """FSDP2 saves folders, one device saves files."""
    progress = SimpleNamespace(total_batch_idx=0)
    trainer = SimpleNamespace(
        loggers=[], is_global_zero=True, fast_dev_run=False, fit_loop=SimpleNamespace(epoch_loop=progress)
    )

    def save_folder(path):
        path.mkdir(parents=True)
        (path / ".metadata").write_text("x")

    callback = RolloutCheckpoint(folder=str(tmp_path / "shared"))
    path = tmp_path / "shared/rollout_000001.ckpt"
    path.parent.mkdir()
    for save in (save_folder, Path.touch, save_folder, save_folder, Path.touch, Path.touch):
        trainer.save_checkpoint, callback.last_saved = save, -1
        callback.on_train_end(trainer, None)
        names = [found.name for found in path.parent.iterdir()]
        assert path.is_dir() == (save is save_folder) and names == [path.name]
        assert (path / "manifest.json").is_file() == path.is_dir()


@pytest.mark.parametrize("make", [lambda path: path.write_text(""), lambda path: path.symlink_to("/proc/nowhere")])
def test_a_folder_that_cannot_be_written_is_one_paragraph(reasoner, tmp_path, make):
    make(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be (made|written to).*--trainer.default_root_dir"):
        run(reasoner, tmp_path / "file", [RolloutCheckpoint()], rollouts=1)


def test_a_second_lock_of_the_same_process_does_not_free_the_first(tmp_path):
    """Two checkpoint callbacks on one folder, or a check while the run goes on."""
    folder = tmp_path / "run/checkpoints"
    first, second = FolderLock(folder), FolderLock(folder)
    first.take()
    second.take()
    second.release()
    FolderLock(folder).check()
    code = f"from pathlib import Path; from support.locks import FolderLock; FolderLock(Path({str(folder)!r})).take()"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode and f"being written by another run: process {os.getpid()}" in other.stderr
    first.release()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
