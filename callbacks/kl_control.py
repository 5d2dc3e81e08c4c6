"""Who decides the KL coefficient."""

import math
from typing import Any, Literal

import lightning as L

from objectives.kl import adapted_coefficient, scheduled_coefficient
from support.errors import ConfigError


class FixedKL(L.Callback):
    """One coefficient for the whole run, over the one in the module's configuration.

    Args:
        coefficient: beta.
    """

    def __init__(self, coefficient: float) -> None:
        if coefficient < 0:
            raise ConfigError(f"FixedKL: coefficient is {coefficient}; it must be 0 or above.")
        self.coefficient = coefficient

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_reference(pl_module, self)
        pl_module.kl.coefficient = self.coefficient


class ScheduledKL(L.Callback):
    """beta along a line or half a cosine, by the number of rollouts done, so that a resumed run goes on where it stood.

    Args:
        start: beta of the first rollout. end: beta after `rollouts` rollouts and from then on.
        rollouts: length of the schedule.
        shape: linear or cosine.
    """

    def __init__(self, start: float, end: float, rollouts: int, shape: Literal["linear", "cosine"] = "linear") -> None:
        if start < 0 or end < 0 or rollouts < 1:
            raise ConfigError(
                f"ScheduledKL: needs start >= 0, end >= 0 and rollouts >= 1, got {start}, {end}, {rollouts}."
            )
        self.start, self.end, self.rollouts, self.shape = start, end, rollouts, shape

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_reference(pl_module, self)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        progress = pl_module.rollouts_done / self.rollouts
        pl_module.kl.coefficient = scheduled_coefficient(self.start, self.end, progress, self.shape)


class AdaptiveKL(L.Callback):
    """beta <- beta * (1 + clip(KL / target - 1, -limit, limit) * rows / horizon) after every rollout (Ziegler et al., arXiv 1909.08593, 2.2).

    Args:
        target: wanted KL a token, in nats, as `train/kl` shows it.
        horizon: completions over which the coefficient changes by a factor of about 1 + limit.
        limit: largest relative error that counts.
    """

    def __init__(self, target: float, horizon: int = 10_000, limit: float = 0.2) -> None:
        if target <= 0 or horizon <= 0 or limit <= 0:
            raise ConfigError(
                f"AdaptiveKL: target, horizon and limit must be positive, got {target}, {horizon}, {limit}."
            )
        self.target, self.horizon, self.limit = target, horizon, limit
        self.coefficient: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.coefficient = state_dict["coefficient"]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        check_reference(pl_module, self)
        if self.coefficient is not None:  # of a resumed run
            pl_module.kl.coefficient = self.coefficient

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # logged with sync_dist, so every process sees and computes the same number
        observed = float(trainer.callback_metrics.get("train/kl", math.nan))
        if math.isfinite(observed):
            plan = pl_module.batch
            rows = plan.prompts_per_rollout * plan.group_size
            self.coefficient = adapted_coefficient(
                pl_module.kl.coefficient, observed, self.target, rows, self.horizon, self.limit
            )
            pl_module.kl.coefficient = self.coefficient


def check_reference(module: L.LightningModule, callback: L.Callback) -> None:
    """Raises ConfigError for a module that keeps no reference."""
    if not getattr(module, "with_reference", False):
        raise ConfigError(
            f"{type(callback).__name__} needs a module that measures KL; set model.kl.coefficient above 0 "
            f"({type(module).__name__} keeps no reference otherwise)."
        )
