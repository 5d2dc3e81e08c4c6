"""Predictions as a file."""

import json
import shlex
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from tracking.runs import run_folder


class WritePredictions(BasePredictionWriter):
    """Every prediction as a line of JSON in <run folder>/predictions.jsonl, or in one file for each process if there are several.

    Args:
        path: another file.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("epoch")
        self.path = path

    def write_on_epoch_end(self, trainer: L.Trainer, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        path = Path(self.path) if self.path else run_folder(trainer) / "predictions.jsonl"
        if trainer.world_size > 1:
            path = path.with_stem(f"{path.stem}_rank{trainer.global_rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        batches = (
            predictions
            if predictions and isinstance(predictions[0][0], dict)
            else [b for loader in predictions for b in loader]
        )
        with path.open("w", encoding="utf-8") as file:
            for batch in batches:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch)
        print(f"Predictions are in {path}; a page of them: `python -m cli.inspect {shlex.quote(str(path))}`")
