"""Rollouts recorded as files for later analysis."""

from typing import Any

import lightning as L

from rollouts import write_rollout
from support.errors import ConfigError
from tracking.runs import run_folder


class RolloutRecorder(L.Callback):
    """Write rollouts to <run folder>/rollouts/rollout_000012.parquet, one file per process if there are several.

    A file holds prompts, completions, masks, behaviour log-probs, rewards, advantages, the reference policy's log-probs
    if they were computed, and data rows. `rollouts.read_rollout` turns it back into a batch, from which advantages and
    losses of another objective can be computed without training; `python -m cli.inspect FILE` shows it.

    Args:
        every_n_rollouts: record every n-th rollout.
    """

    def __init__(self, every_n_rollouts: int = 1) -> None:
        if every_n_rollouts < 1:
            raise ConfigError(f"RolloutRecorder: every_n_rollouts is {every_n_rollouts}; it must be at least 1.")
        self.every_n_rollouts = every_n_rollouts

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "last_rollout"):
            raise ConfigError(
                f"RolloutRecorder records rollouts, but {type(pl_module).__name__} makes none; remove RolloutRecorder "
                "from trainer.callbacks."
            )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if done % self.every_n_rollouts:
            return
        name = f"rollout_{done:06d}" + (f"_rank{trainer.global_rank}" if trainer.world_size > 1 else "")
        facts = {
            "rollout": done,
            "method": type(pl_module).__name__,
            "temperature": pl_module.sampling.temperature,
            "kl_coefficient": pl_module.kl.coefficient,
        }
        write_rollout(pl_module.last_rollout, run_folder(trainer) / "rollouts" / f"{name}.parquet", facts)
