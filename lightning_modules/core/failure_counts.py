"""Counts of failed rewards in a rollout or an evaluation; too many of them end the run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rewards import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.processes import summed


class FailureCounts:
    """(completions, errors, time-outs) of every reward that may fail, on this process until `metrics` sums them."""

    def __init__(self) -> None:
        self.counts: dict[str, Tensor] = {}

    def add(self, batch: RolloutBatch) -> "FailureCounts":
        """Count one scored batch."""
        for name, kinds in batch.failures.items():
            counts = torch.tensor([len(kinds), int((kinds == 1).sum()), int((kinds == 2).sum())], dtype=torch.float32)
            self.counts[name] = self.counts.get(name, torch.zeros(3)) + counts
        return self

    def metrics(self, rewards: Sequence[Reward], where: str) -> dict[str, float]:
        """Rates over all rewards that may fail; empty without such rewards. All processes take part.

        Args:
            rewards: all rewards that scored the batches.
            where: name of the rollout or evaluation in the error.

        Raises:
            ConfigError: on all processes, if a reward failed for more than its `max_failure_rate`.
        """
        fallible = [reward for reward in rewards if reward.max_failure_rate is not None]
        if not fallible:
            return {}
        counts = summed(torch.stack([self.counts.get(reward.name, torch.zeros(3)) for reward in fallible]))
        for reward, (scored, errors, timeouts) in zip(fallible, counts.tolist(), strict=True):
            _check(reward, int(scored), int(errors), int(timeouts), where)
        scored, errors, timeouts = counts.sum(0).tolist()
        return {"reward/error_rate": errors / max(scored, 1.0), "reward/timeout_rate": timeouts / max(scored, 1.0)}


def _check(reward: Reward, scored: int, errors: int, timeouts: int, where: str) -> None:
    assert reward.max_failure_rate is not None
    rate = (errors + timeouts) / max(scored, 1)
    if rate > reward.max_failure_rate:
        raise ConfigError(
            f"the reward {reward.name!r} ({type(reward).__name__}) failed for {rate:.0%} of the {scored} completions "
            f"of {where} ({errors} errors, {timeouts} time-outs), more than its max_failure_rate of "
            f"{reward.max_failure_rate:.0%}; the last failure here: {reward.last_failure or '(on another process)'}. "
            "Repair the service or function that it calls, or raise max_failure_rate; then resume from the last "
            "checkpoint, which is complete."
        )
