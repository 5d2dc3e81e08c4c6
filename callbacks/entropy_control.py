"""Control of the entropy bonus."""

import math
from typing import Any

import lightning as L

from support.errors import ConfigError


class AdaptiveEntropy(L.Callback):
    """Move the coefficient of the entropy bonus by a step after every rollout: up below the target entropy, else down.

    As in Self-Verification's 1.5B recipe (arXiv 2506.01369: target 0.2, step 1e-4, between 0 and 0.005); the first
    coefficient is the module's `shaping.entropy_bonus`. Logs `train/entropy_bonus`. Part of a checkpoint.

    Args:
        target: entropy per token in nats, as in `train/entropy`.
        step: change of the coefficient.
        limits: smallest and largest coefficient.
    """

    def __init__(self, target: float = 0.2, step: float = 1e-4, limits: tuple[float, float] = (0.0, 0.005)) -> None:
        if target <= 0 or step <= 0 or not 0 <= limits[0] < limits[1]:
            raise ConfigError(
                f"AdaptiveEntropy: target is {target}, step {step} and limits {tuple(limits)}, but target and step "
                "must be positive and limits two rising numbers from 0. Change these arguments of "
                "callbacks.AdaptiveEntropy."
            )
        self.target, self.step, self.limits = target, step, limits
        self.coefficient: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.coefficient = state_dict["coefficient"]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "shaping"):
            raise ConfigError(
                f"AdaptiveEntropy needs a method with an entropy bonus, but {type(pl_module).__name__} has none. Take "
                "it out of trainer.callbacks."
            )
        if self.coefficient is not None:  # a resumed run
            pl_module.shaping.entropy_bonus = self.coefficient

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pl_module.log("train/entropy_bonus", pl_module.shaping.entropy_bonus, batch_size=1)
        # Logged with sync_dist, so every process reads and computes the same number.
        observed = float(trainer.callback_metrics.get("train/entropy", math.nan))
        if math.isfinite(observed):
            step = self.step if observed < self.target else -self.step
            low, high = self.limits
            self.coefficient = min(max(pl_module.shaping.entropy_bonus + step, low), high)
            pl_module.shaping.entropy_bonus = self.coefficient
