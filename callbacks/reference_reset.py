"""When the policy becomes its own reference (ProRL, arXiv 2505.24864, 3.3).

A reference that stays behind pulls harder the further the policy comes, until the KL term eats what the reward gives. A reset copies the
policy's weights into the reference and, in the paper, forgets the optimiser's moments.
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
    """A validation metric that no longer rises.

    Args:
        metric: its name, e.g. val/pass@1; greater is better.
        patience: validations in a row without a gain of more than `min_gain` over the best since the last reset; None never asks.
        drop: or one that lies this far below that best; None never asks.
    """

    metric: str = "val/pass@1"
    patience: int | None = 3
    min_gain: float = 0.0
    drop: float | None = None

    def __post_init__(self) -> None:
        if self.patience is None and self.drop is None:
            raise ConfigError("ReferenceReset: a plateau without patience and drop never resets; set one of them.")
        if (
            (self.patience is not None and self.patience < 1)
            or self.min_gain < 0
            or (self.drop is not None and self.drop <= 0)
        ):
            raise ConfigError(
                f"ReferenceReset: plateau needs patience >= 1, min_gain >= 0 and drop > 0, got {self.patience}, {self.min_gain} and {self.drop}."
            )


class ReferenceReset(L.Callback):
    """Resets the reference before the next rollout when any of its triggers fires; a resumed run resets neither twice nor too late.

    Under LoRA the reference becomes a second, frozen adapter. The scheduler and the position in the data stay as they are. Logs the metric
    `train/reference_resets`; every reset is a tag of the MLflow run and a vertical line in figures/reference_resets.png.

    Args:
        every_n_rollouts: a fixed period.
        plateau: on a validation metric.
        kl_ceiling: when `train/kl` exceeds this, in nats a token.
        reset_optimizer: forget the optimiser's moments (the paper); its authors' later recipe keeps them.
    """

    def __init__(
        self,
        every_n_rollouts: int | None = None,
        plateau: Plateau | None = None,
        kl_ceiling: float | None = None,
        reset_optimizer: bool = True,
    ) -> None:
        if every_n_rollouts is None and plateau is None and kl_ceiling is None:
            raise ConfigError("ReferenceReset has no trigger; set every_n_rollouts, plateau or kl_ceiling.")
        if (every_n_rollouts is not None and every_n_rollouts < 1) or (kl_ceiling is not None and kl_ceiling <= 0):
            raise ConfigError(
                f"ReferenceReset: needs every_n_rollouts >= 1 and kl_ceiling > 0, got {every_n_rollouts} and {kl_ceiling}."
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
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_reference(pl_module, self)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        # Logged with sync_dist, so every process sees and decides the same.
        kl = float(trainer.callback_metrics.get("train/kl", math.nan))
        self.curves["kl"].append((done, kl))
        since = done - (self.history[-1]["rollout"] if self.history else 0)
        if self.kl_ceiling is not None and kl > self.kl_ceiling:
            self.pending = f"KL {kl:.3g} above {self.kl_ceiling:g}"
        elif self.every_n_rollouts is not None and since >= self.every_n_rollouts:
            self.pending = f"{since} rollouts"
        pl_module.log("train/reference_resets", float(len(self.history)), batch_size=1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.plateau is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.plateau.metric not in trainer.callback_metrics:
            raise ConfigError(
                f"ReferenceReset watches {self.plateau.metric!r}, which validation does not log; choose one of {sorted(trainer.callback_metrics)}."
            )
        value = float(trainer.callback_metrics[self.plateau.metric])
        # Before the first rollout there is nothing to reset, but a value to beat.
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
        """KL and the watched metric against rollouts, a vertical line at every reset."""
        from matplotlib.figure import Figure

        shown = {name: points for name, points in self.curves.items() if points}
        figure = Figure(figsize=(7, 2.4 * max(1, len(shown))), layout="constrained")
        for axis, (name, points) in zip(
            figure.subplots(max(1, len(shown)), squeeze=False)[:, 0], shown.items(), strict=False
        ):
            axis.plot(*zip(*points, strict=True), color="#1f618d")
            axis.set(
                xlabel="rollouts",
                ylabel="KL a token, nats" if name == "kl" else self.plateau.metric if self.plateau else name,
            )
            for reset in self.history:
                axis.axvline(reset["rollout"], color="#b03a2e", linestyle="--", linewidth=0.8)
        return figure
