"""Predictions written to a file."""

import json
import shlex
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from tracking.runs import run_folder


class WritePredictions(BasePredictionWriter):
    """Write every prediction as a line of JSON to <run folder>/predictions.jsonl, one file per process if there are
    several.

    Args:
        path: another file to write to.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("epoch")
        self.path = path

    def write_on_epoch_end(self, trainer: L.Trainer, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        path = Path(self.path) if self.path else run_folder(trainer) / "predictions.jsonl"
        if trainer.world_size > 1:
            path = path.with_stem(f"{path.stem}_rank{trainer.global_rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        one_loader = predictions and isinstance(predictions[0][0], dict)
        batches = predictions if one_loader else [batch for loader in predictions for batch in loader]
        with path.open("w", encoding="utf-8") as file:
            for batch in batches:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch)
        print(f"Predictions are in {path}; to make a page of them: `python -m cli.inspect {shlex.quote(str(path))}`")
