"""Resets of the reference policy to the current policy (ProRL, arXiv 2505.24864, section 3.3).

A fixed reference pulls harder the further the policy moves away, until the KL term outweighs the reward. A reset copies
the policy's weights into the reference and, in the paper, clears the optimiser's moments.
"""

import math
from dataclasses import dataclass
from typing import Any

import lightning as L

from callbacks.kl_control import check_reference
from support.errors import ConfigError
from tracking.runs import mlflow_runs


@dataclass
class Plateau:
    """Trigger for a validation metric that no longer rises.

    Args:
        metric: name of the metric, e.g. val/pass@1; greater is better.
        patience: number of consecutive validations without a gain of more than `min_gain` over the best value since the
            last reset; None turns this trigger off.
        min_gain: smallest improvement that counts as a gain.
        drop: distance below that best value at which a single validation triggers a reset; None turns this off.
    """

    metric: str = "val/pass@1"
    patience: int | None = 3
    min_gain: float = 0.0
    drop: float | None = None

    def __post_init__(self) -> None:
        if self.patience is None and self.drop is None:
            raise ConfigError(
                "ReferenceReset: plateau has neither patience nor drop, so it never resets; set one of them."
            )
        patience_invalid = self.patience is not None and self.patience < 1
        drop_invalid = self.drop is not None and self.drop <= 0
        if patience_invalid or self.min_gain < 0 or drop_invalid:
            raise ConfigError(
                f"ReferenceReset: plateau.patience is {self.patience}, plateau.min_gain {self.min_gain} and "
                f"plateau.drop {self.drop}, but it needs patience >= 1, min_gain >= 0 and drop > 0. Change these keys."
            )


class ReferenceReset(L.Callback):
    """Reset the reference before the next rollout when any trigger fires; a resumed run resets neither twice nor late.

    Under LoRA the reference becomes a second, frozen adapter. The scheduler and the position in the data are unchanged.
    Logs the metric `train/reference_resets`; every reset is a tag of the MLflow run and a vertical line in
    figures/reference_resets.png.

    Args:
        every_n_rollouts: trigger with a fixed period, in rollouts.
        plateau: trigger on a validation metric.
        kl_ceiling: trigger when `train/kl` exceeds this value, in nats per token.
        reset_optimizer: clear the optimiser's moments, as in the paper; its authors' later recipe keeps them.
    """

    def __init__(
        self,
        every_n_rollouts: int | None = None,
        plateau: Plateau | None = None,
        kl_ceiling: float | None = None,
        reset_optimizer: bool = True,
    ) -> None:
        if every_n_rollouts is None and plateau is None and kl_ceiling is None:
            raise ConfigError(
                "ReferenceReset has no trigger, so it never resets; set every_n_rollouts, plateau or kl_ceiling."
            )
        if (every_n_rollouts is not None and every_n_rollouts < 1) or (kl_ceiling is not None and kl_ceiling <= 0):
            raise ConfigError(
                f"ReferenceReset: every_n_rollouts is {every_n_rollouts} and kl_ceiling is {kl_ceiling}, but it needs "
                "every_n_rollouts >= 1 and kl_ceiling > 0. Change these arguments of callbacks.ReferenceReset."
            )
        self.every_n_rollouts, self.plateau = every_n_rollouts, plateau
        self.kl_ceiling, self.reset_optimizer = kl_ceiling, reset_optimizer
        self.history: list[dict[str, Any]] = []  # {"rollout", "reason"} of every reset
        self.curves: dict[str, list[tuple[int, float]]] = {"kl": [], "validation": []}
        self.best, self.waited = -math.inf, 0
        self.pending: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("history", "curves", "best", "waited", "pending")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.curves = state_dict["history"], state_dict["curves"]
        self.best, self.waited, self.pending = state_dict["best"], state_dict["waited"], state_dict["pending"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_reference(pl_module, self)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        # Logged with sync_dist, so every process reads the same value and makes the same decision.
        kl = float(trainer.callback_metrics.get("train/kl", math.nan))
        self.curves["kl"].append((done, kl))
        since_reset = done - (self.history[-1]["rollout"] if self.history else 0)
        if self.kl_ceiling is not None and kl > self.kl_ceiling:
            self.pending = f"KL {kl:.3g} above {self.kl_ceiling:g}"
        elif self.every_n_rollouts is not None and since_reset >= self.every_n_rollouts:
            self.pending = f"{since_reset} rollouts"
        pl_module.log("train/reference_resets", float(len(self.history)), batch_size=1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.plateau is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.plateau.metric not in trainer.callback_metrics:
            raise ConfigError(
                f"ReferenceReset: plateau.metric is {self.plateau.metric!r}, which validation does not log; set it to "
                f"one of {sorted(trainer.callback_metrics)}."
            )
        value = float(trainer.callback_metrics[self.plateau.metric])
        # Before the first rollout there is nothing to reset, but the value counts as the best one so far.
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1 if trainer.global_step else 0
        self.curves["validation"].append((done, value))
        if self.plateau.drop is not None and value < self.best - self.plateau.drop:
            self.pending = f"{self.plateau.metric} {value:.3g} after {self.best:.3g}"
        if value > self.best + self.plateau.min_gain:
            self.waited = 0
        else:
            self.waited += 1
            if self.plateau.patience is not None and self.waited >= self.plateau.patience:
                self.pending = f"no gain of {self.plateau.metric} in {self.waited} validations"
        self.best = max(self.best, value)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.pending is None:
            return
        pl_module.policy.reset_reference()
        if self.reset_optimizer:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
        rollout = trainer.fit_loop.epoch_loop.total_batch_idx
        self.history.append({"rollout": rollout, "reason": self.pending})
        if trainer.is_global_zero:
            print(f"Reference reset after rollout {rollout}: {self.pending}", flush=True)
        self.pending, self.best, self.waited = None, -math.inf, 0
        for client, run in mlflow_runs(trainer):
            client.set_tag(
                run, f"reference_reset.{len(self.history)}", f"rollout {rollout}: {self.history[-1]['reason']}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        for client, run in mlflow_runs(trainer):
            client.log_figure(run, self.figure(), "figures/reference_resets.png")

    def figure(self) -> Any:
        """KL and the plateau's metric over rollouts, with a vertical line at every reset."""
        from matplotlib.figure import Figure

        curves = {name: points for name, points in self.curves.items() if points}
        labels = {"kl": "KL per token, nats", "validation": self.plateau.metric if self.plateau else "validation"}
        figure = Figure(figsize=(7, 2.4 * max(1, len(curves))), layout="constrained")
        axes = figure.subplots(max(1, len(curves)), squeeze=False)[:, 0]
        for axis, (name, points) in zip(axes, curves.items(), strict=False):
            axis.plot(*zip(*points, strict=True), color="#1f618d")
            axis.set(xlabel="rollouts", ylabel=labels[name])
            for reset in self.history:
                axis.axvline(reset["rollout"], color="#b03a2e", linestyle="--", linewidth=0.8)
        return figure
