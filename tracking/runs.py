"""The folder of a run's files, and its MLflow runs."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger


def run_folder(trainer: L.Trainer) -> Path:
    """<default_root_dir>/<the logger's run id, or "local">."""
    version = getattr(trainer.logger, "version", None)
    return Path(trainer.default_root_dir) / str("local" if version is None else version)


def mlflow_runs(trainer: L.Trainer) -> list[tuple[Any, str]]:
    """(client, run id) of every MLflow logger of this process."""
    if not trainer.is_global_zero:
        return []
    return [(logger.experiment, str(logger.run_id)) for logger in trainer.loggers if isinstance(logger, MLFlowLogger)]
