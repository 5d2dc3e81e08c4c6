"""Training in stages: attributes of the module and the learning rate change at given rollouts."""

from dataclasses import dataclass, field
from typing import Any

import lightning as L

from support.errors import ConfigError
from tracking.run_records import now_ms, record
from tracking.runs import mlflow_runs


@dataclass
class Stage:
    """Settings of one stage.

    Args:
        from_rollout: first rollout of the stage; 0 for the first stage.
        set: attributes of the module by dotted name, e.g. {stage: 2, sampling.max_new_tokens: 96}.
        lr: learning rate of all parameters; None leaves it unchanged.
        reset_optimizer: clear the optimiser's moments, as in a separate run.
    """

    from_rollout: int
    set: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    reset_optimizer: bool = False


class StageSchedule(L.Callback):
    """Apply each stage before its first rollout. A resumed run continues in its stage and enters no stage twice.

    In MLflow each stage is a child run with its settings and validations.

    Args:
        stages: stages in the order of their rollouts.

    Raises:
        ConfigError: for stages in a wrong order, an unknown attribute, or `lr` beside a learning-rate scheduler.
    """

    def __init__(self, stages: list[Stage]) -> None:
        begins = [stage.from_rollout for stage in stages]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)):
            raise ConfigError(
                f"StageSchedule: the values of from_rollout are {begins}; they must begin with 0 and increase. Change "
                "them in StageSchedule.stages."
            )
        self.stages = stages
        self.applied = -1  # index of the stage whose values this process has set
        # index of the latest stage whose one-time changes were made, in this process or before a resume
        self.entered = -1

    def state_dict(self) -> dict[str, Any]:
        return {"entered": self.entered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.entered = state_dict["entered"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for stage in self.stages:
            for name in stage.set:
                _owner(pl_module, name)
            if stage.lr is not None and getattr(pl_module, "scheduler_callable", None) is not None:
                raise ConfigError(
                    f"StageSchedule: the stage from rollout {stage.from_rollout} sets lr to {stage.lr}, but "
                    "model.lr_scheduler overwrites it at every step. Remove one of the two."
                )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        rollout = trainer.fit_loop.epoch_loop.total_batch_idx
        index = max(i for i, stage in enumerate(self.stages) if stage.from_rollout <= rollout)
        if index == self.applied:
            return
        stage = self.stages[index]
        for name, value in stage.set.items():
            owner, last = _owner(pl_module, name)
            setattr(owner, last, value)
        for optimizer in trainer.optimizers:
            if stage.lr is not None:
                for group in optimizer.param_groups:
                    group["lr"] = stage.lr
            if stage.reset_optimizer and index > self.entered:
                optimizer.state.clear()
        if index > self.entered:
            self._record(trainer, self.entered, ended=True)
        self.applied, self.entered = index, max(index, self.entered)
        self._record(trainer, index)
        if trainer.is_global_zero:
            print(
                f"Stage {index + 1} of {len(self.stages)} from rollout {rollout}: {stage.set}, lr {stage.lr}",
                flush=True,
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._record(trainer, self.applied, metrics={name.replace("@", ""): value for name, value in metrics.items()})

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.interrupted:
            self._record(trainer, self.applied, ended=True)

    def _record(
        self, trainer: L.Trainer, index: int, metrics: dict[str, float] | None = None, ended: bool = False
    ) -> None:
        """Record a stage in MLflow as a child run, with its settings and the validations within it."""
        for client, run in mlflow_runs(trainer) if index >= 0 else []:
            stage, done = self.stages[index], trainer.fit_loop.epoch_loop.total_batch_idx + 1
            params = {"from_rollout": stage.from_rollout, "reset_optimizer": stage.reset_optimizer, **stage.set}
            params |= {} if stage.lr is None else {"lr": stage.lr}
            facts = {
                "stage": index + 1,
                "name": f"stage {index + 1} of {len(self.stages)}",
                "params": params,
                "step": done,
                "time_ms": now_ms(),
            }
            record(client, run, "stage", facts | {"metrics": metrics or {}, "ended": ended})


def _owner(module: Any, name: str) -> tuple[Any, str]:
    """The object whose attribute a dotted name ends in, and that attribute's name."""
    *path, last = name.split(".")
    owner = module
    for step in path:
        owner = getattr(owner, step, None)
    if not hasattr(owner, last):
        raise ConfigError(
            f"StageSchedule sets {name!r}, but {type(module).__name__} has no such attribute; correct the name under "
            "StageSchedule.stages, `set`."
        )
    return owner, last
