"""A gradient that is not a number: the update has been left out; here it is counted, kept for inspection, and ended when it goes on."""

from typing import Any

import lightning as L
import torch

from support.errors import ConfigError
from tracking.runs import run_folder


class NonFiniteGradients(L.Callback):
    """Saves every rollout whose gradient was infinite or NaN to <run folder>/non_finite/rollout_000012.pt, and stops after `patience` in a row.

    The file holds plain tensors, texts and data rows (torch.load with weights_only=True reads it). `train/skipped_updates` counts the updates left out.

    Args:
        patience: rollouts in a row with such an update, after which the run ends.

    Raises:
        ConfigError: then, naming the files.
    """

    def __init__(self, patience: int = 3) -> None:
        if patience < 1:
            raise ConfigError(f"NonFiniteGradients: patience is {patience}; it must be at least 1.")
        self.patience, self.in_a_row = patience, 0

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row = state_dict["in_a_row"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.callback_metrics.get("train/skipped_updates"):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        folder = run_folder(trainer) / "non_finite"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"rollout_{done:06d}" + (f"_rank{trainer.global_rank}" if trainer.world_size > 1 else "")
        found = pl_module.last_rollout
        torch.save(
            {
                "prompt_ids": found.prompt_ids, "completion_ids": found.completion_ids, "completion_mask": found.completion_mask,
                "behaviour_logprobs": found.behaviour_logprobs, "advantages": found.advantages, "rewards": dict(found.rewards),
                "completions": found.completions, "rows": [{key: str(value) for key, value in row.items()} for row in found.rows],
            },
            folder / f"{name}.pt",
        )  # fmt: skip
        if self.in_a_row >= self.patience:
            raise ConfigError(
                f"the gradient was infinite or NaN in {self.in_a_row} rollouts in a row, so nothing is learned; the rollouts are in {folder}. Lower the "
                "learning rate, set model.max_grad_norm, or look for extreme rewards or log-probs there; then go on from the last checkpoint."
            )
