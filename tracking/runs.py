"""The folder of a run's files, its place in the order of runs, and its MLflow runs."""

import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger

from support.errors import ConfigError
from support.files import atomic_write_text

#: the file of a run's number among the runs of its root folder
NUMBER = ".run.json"


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of a run's files, no other run's.

    <default_root_dir>/<run id> with MLflow, another logger's own folder, and <default_root_dir>/local, local_2, ...
    without a logger. A run without a logger that continues from a checkpoint continues in the checkpoint's folder.
    """
    folder: Path | None = getattr(trainer, "_run_folder", None)
    if folder is None:
        folder = _chosen(trainer)
        trainer._run_folder = folder  # type: ignore[attr-defined]
    return folder


def settle_run_folder(trainer: L.Trainer) -> None:
    """Let the first process choose the run's folder and tell the others; all processes call it.

    Raises:
        ConfigError: the folder cannot be made.
    """
    if getattr(trainer, "_run_folder", None) is None:
        folder, problem = None, None
        if trainer.is_global_zero:
            try:
                folder = run_folder(trainer)
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                problem = (
                    f"the run's folder under {trainer.default_root_dir} cannot be made: {error}. Make its place "
                    "writable, or choose another one with --trainer.default_root_dir."
                )
        folder, problem = trainer.strategy.broadcast((folder, problem))
        if problem is not None:
            raise ConfigError(problem)
        trainer._run_folder = folder  # type: ignore[attr-defined]


def continue_from(trainer: L.Trainer, checkpoint: str | None) -> None:
    """Let a run without a logger continue in the folder of its checkpoint, known before the trainer reads it."""
    if checkpoint and trainer.logger is None and (folder := _folder_of(trainer, checkpoint)) is not None:
        trainer._run_folder = folder  # type: ignore[attr-defined]


def _folder_of(trainer: L.Trainer, checkpoint: Any) -> Path | None:
    """The run folder of a checkpoint under the trainer's root folder; None for a checkpoint elsewhere."""
    root, folder = Path(trainer.default_root_dir), Path(checkpoint).absolute().parent
    inside = folder.name == "checkpoints" and folder.parent.parent.resolve() == root.resolve()
    return root / folder.parent.name if inside else None


def _chosen(trainer: L.Trainer) -> Path:
    root, logger = Path(trainer.default_root_dir), trainer.logger
    log_dir = getattr(logger, "log_dir", None)
    if logger is not None and log_dir is None:
        _ = getattr(logger, "experiment", None)  # Weights & Biases chooses the run's id when the run begins
    if isinstance(logger, MLFlowLogger) or (logger is not None and log_dir is None):
        return root / str(logger.version)
    if log_dir is not None:
        return Path(log_dir)
    checkpoint = getattr(trainer, "ckpt_path", None)
    if checkpoint and (folder := _folder_of(trainer, checkpoint)) is not None:
        return folder
    root.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = root / ("local" if number == 1 else f"local_{number}")
        try:
            folder.mkdir()  # of two runs that start together, one makes it
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def number_of(folder: Path) -> int:
    """The number that a run got when it was last started; 0 for one without."""
    try:
        number = json.loads((folder / NUMBER).read_text(encoding="utf-8"))["number"]
        return number if isinstance(number, int) else 0
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0


def in_order(folders: Iterable[Path]) -> list[Path]:
    """Runs, the one that was started last at the end.

    Their numbers decide, because clocks step back and copies lose their times; times decide among earlier versions'
    runs, which have no number.
    """
    return sorted(folders, key=lambda folder: (number_of(folder), (folder / "config_fit.yaml").stat().st_mtime_ns))


def write_number(folder: Path) -> None:
    """Make a run the last of its root folder."""
    number = 1 + max((number_of(path.parent) for path in folder.parent.glob(f"*/{NUMBER}")), default=0)
    atomic_write_text(folder / NUMBER, json.dumps({"number": number}))


def mlflow_runs(trainer: L.Trainer) -> list[tuple[Any, str]]:
    """(client, run id) of every MLflow logger of this process."""
    if not trainer.is_global_zero:
        return []
    return [(logger.experiment, str(logger.run_id)) for logger in trainer.loggers if isinstance(logger, MLFlowLogger)]
