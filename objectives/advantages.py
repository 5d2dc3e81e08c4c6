"""Advantages: how much better a completion was than its prompt's other completions."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Advantage(ABC):
    """Turns rewards into one advantage a row (spread over its tokens later) or one a token."""

    @abstractmethod
    def __call__(
        self,
        rewards: Float[Tensor, "rows"],
        groups: Int[Tensor, "rows"],
        tokens: Int[Tensor, "rows time"],
        mask: Bool[Tensor, "rows time"],
    ) -> Float[Tensor, "rows"] | Float[Tensor, "rows time"]:
        """Advantages of all rows of a rollout.

        Args:
            rewards: total reward of each completion; NaN marks a row that no reward applied to.
            groups: index of the prompt that each row belongs to, 0 ... prompts - 1.
            tokens: completion token ids, padded on the right.
            mask: True on tokens that the policy chose.
        """


def group_sums(values: Float[Tensor, "rows"], groups: Int[Tensor, "rows"]) -> Float[Tensor, "groups"]:
    """Sum of the values of each group; works for groups of unequal size."""
    count = int(groups.max()) + 1 if groups.numel() else 0
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, groups, values)


def group_statistics(
    rewards: Float[Tensor, "rows"], groups: Int[Tensor, "rows"]
) -> tuple[Float[Tensor, "groups"], Float[Tensor, "groups"], Float[Tensor, "groups"]]:
    """(mean, sample standard deviation, count) of each group over its rows that are not NaN.

    Two passes, so that a group of equal rewards has a deviation of exactly zero. A group of one has deviation zero.
    """
    valid = ~rewards.isnan()
    clean = torch.where(valid, rewards, torch.zeros_like(rewards))
    count = group_sums(valid.to(rewards.dtype), groups)
    # Centring on one of the group's own values first keeps equal rewards equal after the division.
    anchor = torch.full_like(count, -torch.inf).scatter_reduce(0, groups[valid], clean[valid], "amax")
    offset = torch.where(valid, rewards - anchor[groups], torch.zeros_like(rewards))
    mean_offset = group_sums(offset, groups) / count.clamp(min=1)
    deviation = torch.where(valid, offset - mean_offset[groups], torch.zeros_like(rewards))
    variance = group_sums(deviation**2, groups) / (count - 1).clamp(min=1)
    return anchor + mean_offset, variance.sqrt(), count


class GroupNorm(Advantage):
    """GRPO's advantage: (R_i - mean) / (std + eps) within the prompt's group (DeepSeekMath, arXiv 2402.03300, 4.1.2).

    The deviation is the sample's (divided by G - 1), as in TRL and verl; `scale="none"` leaves the division out
    (Dr. GRPO, arXiv 2503.20783). A group whose rewards are all equal gets exactly zero. Rows with NaN get zero and
    do not count.

    Args:
        scale: what the centred reward is divided by.
        eps: added to the deviation; TRL uses 1e-4, verl 1e-6.
    """

    def __init__(self, scale: Literal["group_std", "none"] = "group_std", eps: float = 1e-4) -> None:
        self.scale = scale
        self.eps = eps

    def __call__(self, rewards, groups, tokens, mask):
        mean, std, _ = group_statistics(rewards, groups)
        advantages = rewards - mean[groups]
        if self.scale == "group_std":
            advantages = advantages / (std[groups] + self.eps)
        return advantages.nan_to_num(0.0)


class LeaveOneOut(Advantage):
    """RLOO: each completion against the mean of the others of its prompt (Ahmadian et al., arXiv 2402.14740).

    A_i = R_i - 1/(G-1) * sum_{j != i} R_j = G/(G-1) * (R_i - mean).
    """

    def __call__(self, rewards, groups, tokens, mask):
        mean, _, count = group_statistics(rewards, groups)
        factor = count / (count - 1).clamp(min=1)
        return (factor[groups] * (rewards - mean[groups])).nan_to_num(0.0)
