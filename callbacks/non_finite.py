"""Record of updates that were skipped because the gradient was infinite or NaN, and an end to runs that repeat it."""

from typing import Any

import lightning as L
import torch

from support.errors import ConfigError
from tracking.runs import run_folder


class NonFiniteGradients(L.Callback):
    """Save every rollout whose gradient was infinite or NaN, and stop the run after `patience` such rollouts in a row.

    A rollout is saved as <run folder>/non_finite/rollout_000012.pt, with plain tensors, texts and data rows (torch.load
    with weights_only=True reads it). `train/skipped_updates` counts the skipped updates.

    Args:
        patience: number of consecutive rollouts with such an update after which the run ends.

    Raises:
        ConfigError: when the run ends for this reason; the message names the folder of the files.
    """

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise ConfigError(
                f"NonFiniteGradients: patience is {patience}; it is a number of rollouts and must be at least 1."
            )
        self.patience = patience

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.non_finite_patience = self.patience

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.callback_metrics.get("train/skipped_updates"):
            return
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        folder = run_folder(trainer) / "non_finite"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"rollout_{done:06d}" + (f"_rank{trainer.global_rank}" if trainer.world_size > 1 else "")
        rollout = pl_module.last_rollout
        tensors = ("prompt_ids", "completion_ids", "completion_mask", "behaviour_logprobs", "advantages", "completions")
        contents = {field: getattr(rollout, field) for field in tensors} | {
            "rewards": dict(rollout.rewards),
            "rows": [{key: str(value) for key, value in row.items()} for row in rollout.rows],
        }
        torch.save(contents, folder / f"{name}.pt")
        if pl_module.non_finite_rollouts >= self.patience:
            raise ConfigError(
                f"the gradient was infinite or NaN in {self.patience} consecutive rollouts, saved in {folder}. Lower "
                "the learning rate, set model.max_grad_norm, or look for extreme rewards or log-probs in these "
                "files; then continue from the last checkpoint with --ckpt_path."
            )
