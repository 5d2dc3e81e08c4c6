"""Control of the KL coefficient: fixed, scheduled or adapted to a target."""

import math
from typing import Any, Literal

import lightning as L

from objectives.kl import adapted_coefficient, scheduled_coefficient
from support.errors import ConfigError


class FixedKL(L.Callback):
    """One coefficient for the whole run, which replaces the one in the module's configuration.

    Args:
        coefficient: beta, 0 or above.
    """

    def __init__(self, coefficient: float) -> None:
        if coefficient < 0:
            raise ConfigError(f"FixedKL: coefficient is {coefficient}; it must be 0 or above.")
        self.coefficient = coefficient

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_reference(pl_module, self)
        pl_module.kl.coefficient = self.coefficient


class ScheduledKL(L.Callback):
    """beta as a linear or half-cosine function of the number of rollouts done, so a resumed run continues the schedule.

    Args:
        start: beta of the first rollout.
        end: beta after `rollouts` rollouts and from then on.
        rollouts: length of the schedule.
        shape: linear or cosine.
    """

    def __init__(self, start: float, end: float, rollouts: int, shape: Literal["linear", "cosine"] = "linear") -> None:
        if start < 0 or end < 0 or rollouts < 1:
            raise ConfigError(
                f"ScheduledKL: start is {start}, end {end} and rollouts {rollouts}, but it needs start >= 0, end >= 0 "
                "and rollouts >= 1. Change these arguments of callbacks.ScheduledKL."
            )
        self.start, self.end, self.rollouts, self.shape = start, end, rollouts, shape

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_reference(pl_module, self)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        progress = pl_module.rollouts_done / self.rollouts
        pl_module.kl.coefficient = scheduled_coefficient(self.start, self.end, progress, self.shape)


class AdaptiveKL(L.Callback):
    """beta <- beta * (1 + clip(KL / target - 1, -limit, limit) * rows / horizon) after every rollout.

    Source: Ziegler et al., arXiv 1909.08593, section 2.2.

    Args:
        target: target KL per token, in nats, as in `train/kl`.
        horizon: number of completions over which the coefficient changes by a factor of about 1 + limit.
        limit: largest relative error that counts.
    """

    def __init__(self, target: float, horizon: int = 10_000, limit: float = 0.2) -> None:
        if target <= 0 or horizon <= 0 or limit <= 0:
            raise ConfigError(
                f"AdaptiveKL: target is {target}, horizon {horizon} and limit {limit}, but all three must be positive. "
                "Change these arguments of callbacks.AdaptiveKL."
            )
        self.target, self.horizon, self.limit = target, horizon, limit
        self.coefficient: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.coefficient = state_dict["coefficient"]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_reference(pl_module, self)
        if self.coefficient is not None:  # a resumed run
            pl_module.kl.coefficient = self.coefficient

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Logged with sync_dist, so every process reads and computes the same number.
        observed = float(trainer.callback_metrics.get("train/kl", math.nan))
        if math.isfinite(observed):
            plan = pl_module.batch
            rows = plan.prompts_per_rollout * plan.group_size
            self.coefficient = adapted_coefficient(
                pl_module.kl.coefficient, observed, self.target, rows, self.horizon, self.limit
            )
            pl_module.kl.coefficient = self.coefficient


def check_reference(module: L.LightningModule, callback: L.Callback) -> None:
    """Raise ConfigError for a module that keeps no reference policy."""
    if not getattr(module, "with_reference", False):
        raise ConfigError(
            f"{type(callback).__name__} needs a module that measures KL, but this {type(module).__name__} keeps no "
            "reference policy. Set model.kl.coefficient above 0."
        )
