"""A baseline that needs no group: what the policy earned in the rollouts before this one."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from objectives.advantages import Advantage
from support.errors import ConfigError


@dataclass
class RunningMean(Advantage):
    """REINFORCE's baseline of one number, for one completion a prompt (HC-RLHF, arXiv 2506.08266, which has it beside leave-one-out).

    A_i = R_i - b, then b <- decay b + (1 - decay) mean(R), the mean over the rollout's rows on all processes that are not NaN. A rollout is judged by
    the b of those before it, which does not depend on its own samples, so the gradient's expectation is that of A_i = R_i. The first rollout
    has none before it: it sets b to its own mean, is judged by that, and its gradient's expectation is (1 - 1/n) of n rows' true one.
    Rows with NaN get zero and do not count; a rollout of nothing else leaves b.

    Args:
        decay: how much of b stays from rollout to rollout, 0 <= decay < 1; 0 judges by the previous rollout alone.
    """

    needs_group = False

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(
                f"RunningMean: decay is {self.decay}; set it to at least 0 and below 1, since 1 would never learn from a "
                "rollout."
            )
        #: b, in the unit of the returns; None before the first rollout
        self.baseline: float | None = None

    def __call__(
        self,
        rewards: Float[Tensor, "rows"],
        groups: Int[Tensor, "rows"],
        tokens: Int[Tensor, "rows time"],
        mask: Bool[Tensor, "rows time"],
    ) -> Float[Tensor, "rows"]:
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
