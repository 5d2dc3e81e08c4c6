"""Checkpoints that count rollouts."""

import os
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from support.errors import ConfigError
from support.runs import run_folder


class RolloutCheckpoint(Checkpoint):
    """Save the whole training state every n rollouts and at the end.

    Lightning's ModelCheckpoint counts optimiser steps and only looks at a rollout's end, so with several steps a rollout it
    saves seldom or never.

    Args:
        every_n_rollouts: 0 saves only at the end.
        keep: newest checkpoints of this run that are kept; None keeps all.
        folder: where to; <run folder>/checkpoints by default.
    """

    def __init__(self, every_n_rollouts: int = 0, keep: int | None = 2, folder: str | None = None) -> None:
        if every_n_rollouts < 0 or (keep is not None and keep < 1):
            raise ConfigError(f"RolloutCheckpoint: needs every_n_rollouts >= 0 and keep >= 1, got {every_n_rollouts} and {keep}.")
        self.every_n_rollouts, self.keep, self.folder = every_n_rollouts, keep, folder
        self.last_saved = -1
        self.saved: list[Path] = []

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.folder) if self.folder else run_folder(trainer) / "checkpoints"

    def _save(self, trainer: L.Trainer) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if trainer.fast_dev_run or done == self.last_saved:  # type: ignore[attr-defined]
            return
        path = self._folder(trainer) / f"rollout_{done:06d}.ckpt"
        temporary = path.with_suffix(".partial")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, path)  # a killed run leaves whole checkpoints only
            self.saved = [old for old in self.saved if old != path] + [path]
            while self.keep and len(self.saved) > self.keep:
                self.saved.pop(0).unlink(missing_ok=True)
        self.last_saved = done

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self.every_n_rollouts and done % self.every_n_rollouts == 0:
            self._save(trainer)

    def on_validation_end(self, trainer, pl_module):
        """What other callbacks learn from the validation that follows a rollout belongs to that rollout's checkpoint: it is written once more."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if trainer.state.fn == "fit" and done == self.last_saved:
            self.last_saved = -1
            self._save(trainer)

    def on_train_end(self, trainer, pl_module):
        self._save(trainer)
