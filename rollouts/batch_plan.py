"""All batch sizes of a run: prompts, completions, micro-batches and updates."""

import math
from dataclasses import dataclass
from typing import Literal

from support.errors import ConfigError


@dataclass
class BatchPlan:
    """Sizes of a rollout and of its updates.

    Args:
        prompts_per_rollout: prompts of one rollout, over all processes.
        group_size: completions of each prompt; 1 needs an advantage that does not need a group, such as
            objectives.RunningMean.
        rollout_micro_batch: completions generated at once on one process; None generates all at once.
        update_token_budget: maximum number of tokens in one forward and backward pass, a prompt counted once for its
            completions; None takes all at once.
        updates_per_rollout: parts that a rollout is divided into, one optimiser step each.
        epochs: passes over all parts of a rollout.
        kl_stop: mean per-token KL(sampling policy || policy) in nats above which a rollout's remaining optimiser steps
            are skipped; None takes all steps.
        lr_per: whether the learning-rate scheduler counts optimiser steps or rollouts.
        refill: dynamic sampling (DAPO, arXiv 2503.14476): groups whose completions all earn the same reward are
            replaced by groups of further prompts. The extra completions are at most this multiple of the rollout's own;
            0 keeps every group.
    """

    prompts_per_rollout: int
    group_size: int
    rollout_micro_batch: int | None = None
    update_token_budget: int | None = None
    updates_per_rollout: int = 1
    epochs: int = 1
    kl_stop: float | None = None
    lr_per: Literal["update", "rollout"] = "update"
    refill: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            "prompts_per_rollout",
            "group_size",
            "rollout_micro_batch",
            "update_token_budget",
            "updates_per_rollout",
            "epochs",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"batch.{name} is {value}; it must be at least 1.")
        if self.kl_stop is not None and (self.kl_stop <= 0 or self.updates == 1):
            raise ConfigError(
                f"batch.kl_stop is {self.kl_stop}; it must be above 0, and it needs several updates per rollout: raise "
                "batch.updates_per_rollout or batch.epochs."
            )
        if not 0 <= self.refill < math.inf:
            raise ConfigError(
                f"batch.refill is {self.refill}; it must be 0 (keep groups without signal) or a finite number above 0."
            )
        if self.prompts_per_rollout % self.updates_per_rollout:
            raise ConfigError(
                f"batch.updates_per_rollout is {self.updates_per_rollout}, which does not divide "
                f"batch.prompts_per_rollout ({self.prompts_per_rollout}); choose a divisor, since a prompt's group is "
                "never split."
            )

    @property
    def updates(self) -> int:
        """Optimiser steps of one rollout, unless `kl_stop` ends it earlier."""
        return self.updates_per_rollout * self.epochs

    def check_processes(self, processes: int) -> None:
        """Raise ConfigError for a number of processes over which an update's prompts cannot be divided evenly."""
        per_update = self.prompts_per_rollout // self.updates_per_rollout
        if per_update % processes:
            raise ConfigError(
                f"{per_update} prompts per update (batch.prompts_per_rollout / batch.updates_per_rollout) cannot be "
                f"divided evenly over {processes} processes; change trainer.devices or batch.prompts_per_rollout."
            )
        if self.refill and not self.further_prompts(processes):
            raise ConfigError(
                f"batch.refill is {self.refill}, which is less than one prompt on each of {processes} process(es) with "
                f"batch.prompts_per_rollout {self.prompts_per_rollout}; raise it, or set it to 0."
            )

    def further_prompts(self, processes: int = 1) -> int:
        """Maximum number of extra prompts that dynamic sampling takes on each process."""
        return int(self.refill * self.prompts_per_rollout / processes + 1e-9)

    def describe(self, processes: int = 1) -> str:
        """The derived sizes in one sentence, for people."""
        self.check_processes(processes)
        rows = self.prompts_per_rollout * self.group_size
        details = f", {self.epochs} times" if self.epochs > 1 else ""
        if self.refill:
            details += (
                "; groups without signal are replaced, from at most "
                f"{self.further_prompts(processes)} further prompts on each"
            )
        return (
            f"{self.prompts_per_rollout} prompts x {self.group_size} completions = {rows} rows per rollout, "
            f"{rows // processes} on each of {processes} process(es); {self.updates_per_rollout} update(s) of "
            f"{rows // self.updates_per_rollout} rows{details}"
        )
