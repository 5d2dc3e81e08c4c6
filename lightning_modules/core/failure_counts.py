"""How often rewards failed in a rollout or an evaluation, and the end of the run where that is too often."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewards import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError

if TYPE_CHECKING:
    from lightning_modules.core.on_policy import OnPolicyModule


class FailureCounts:
    """(completions, errors, time-outs) of every reward that may fail, on this process until `metrics` adds up all of them."""

    def __init__(self) -> None:
        self.counts: dict[str, Tensor] = {}

    def add(self, batch: RolloutBatch) -> "FailureCounts":
        for name, kinds in batch.failures.items():
            found = torch.tensor([len(kinds), int((kinds == 1).sum()), int((kinds == 2).sum())], dtype=torch.float32)
            self.counts[name] = self.counts.get(name, torch.zeros(3, dtype=torch.float32)) + found
        return self

    def metrics(self, module: "OnPolicyModule", where: str) -> dict[str, float]:
        """Rates over all rewards that may fail; nothing if there is none.

        Raises:
            ConfigError: on all processes alike, where a reward failed for more than its `max_failure_rate` of the completions.
        """
        fallible = [reward for reward in module.all_rewards if reward.max_failure_rate is not None]
        if not fallible:
            return {}
        counts = module.summed(
            torch.stack([self.counts.get(reward.name, torch.zeros(3, dtype=torch.float32)) for reward in fallible])
        )
        for reward, (asked, errors, timeouts) in zip(fallible, counts.tolist(), strict=True):
            _check(reward, int(asked), int(errors), int(timeouts), where)
        asked, errors, timeouts = counts.sum(0).tolist()
        return {"reward/error_rate": errors / max(asked, 1.0), "reward/timeout_rate": timeouts / max(asked, 1.0)}

    def log(self, module: "OnPolicyModule", stage: str) -> None:
        for name, value in self.metrics(module, {"val": "the validation", "test": "the test"}[stage]).items():
            module.log(f"{stage}/{name}", value, sync_dist=True)  # equal on all processes already


def _check(reward: Reward, asked: int, errors: int, timeouts: int, where: str) -> None:
    assert reward.max_failure_rate is not None
    rate = (errors + timeouts) / max(asked, 1)
    if rate > reward.max_failure_rate:
        raise ConfigError(
            f"the reward {reward.name!r} ({type(reward).__name__}) failed for {rate:.0%} of the {asked} completions of {where} ({errors} errors, {timeouts} time-outs), "
            f"more than its max_failure_rate of {reward.max_failure_rate:.0%}; the last failure here: {reward.last_failure or '(on another process)'}. Mend what it asks, "
            "or raise max_failure_rate; checkpoints of earlier rollouts are complete."
        )
