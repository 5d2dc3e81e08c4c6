"""A baseline that needs no group: the running mean reward of the earlier rollouts."""

from dataclasses import dataclass
from typing import Any

import torch

from objectives.advantages import Advantage
from objectives.shapes import Groups, PerRow, TokenIds, TokenMask
from objectives.statistics import as_floats
from support.errors import ConfigError


@dataclass
class RunningMean(Advantage):
    """REINFORCE's scalar baseline, for one completion per prompt (an option of HC-RLHF, arXiv 2506.08266).

    A_i = R_i - b, then b <- decay b + (1 - decay) mean(R), the mean over the rows of all processes that are not NaN.
    The b of a rollout comes from the rollouts before it and does not depend on its own samples, so the expected
    gradient is that of A_i = R_i. The first rollout uses its own mean as b, so its expected gradient is (1 - 1/n) of
    the true one for n rows. Rows with NaN get zero and do not count; a rollout of NaN only does not change b.

    Args:
        decay: fraction of b that is kept from rollout to rollout, 0 <= decay < 1; 0 uses the previous rollout only.
    """

    needs_group = False

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(
                f"RunningMean: decay is {self.decay}, and a decay of 1 would never update the baseline; set "
                "advantage.decay to at least 0 and below 1."
            )
        #: b, in units of the returns; None before the first rollout
        self.baseline: float | None = None

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow:
        rewards = as_floats(rewards)
        valid = rewards.detach()[~rewards.isnan()].cpu().double()
        total, count = self.reduce(torch.stack([valid.sum(), valid.new_tensor(valid.numel())])).tolist()
        if not count:
            return torch.zeros_like(rewards)
        mean = total / count
        baseline = mean if self.baseline is None else self.baseline
        self.baseline = self.decay * baseline + (1 - self.decay) * mean
        return (rewards - baseline).nan_to_num(0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.baseline = state.get("baseline")
