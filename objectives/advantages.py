"""Advantages: the reward of a completion relative to the other completions of its prompt."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from objectives.shapes import Groups, PerRow, PerToken, TokenIds, TokenMask
from objectives.statistics import Deviation, Reduce, as_floats, global_moments, group_statistics, own


class Advantage(ABC):
    """Computes advantages from rewards: one per row, which applies to all its tokens, or one per token."""

    #: whether it also accepts per-token rewards, shaped "rows time"
    token_rewards = False
    #: whether it compares a completion with others of its prompt, so that a group of one has no gradient
    needs_group = True
    #: whether it needs the values of a critic, which methods with one have
    needs_critic = False
    #: metrics of the latest call, by name; the on-policy module logs them under train/
    metrics: dict[str, float] = {}
    #: set by `prepare`: sums statistics over all processes
    reduce: Reduce = staticmethod(own)
    #: set by `prepare`: ids of the tokens that end or pad a completion
    end_tokens: Sequence[int] = ()

    def prepare(self, reduce: Reduce, end_tokens: Sequence[int] = ()) -> None:
        """Receive the run's settings. Called once, before the first rollout.

        Args:
            reduce: sums a tensor over all processes, for statistics over more than a group.
            end_tokens: ids of the tokens that end or pad a completion.
        """
        self.reduce, self.end_tokens = reduce, tuple(end_tokens)

    @abstractmethod
    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow | PerToken:
        """Advantages of all rows of a rollout.

        Args:
            rewards: total reward of each completion; NaN marks a row that no reward applied to.
            groups: index of the prompt that each row belongs to, 0 ... prompts - 1.
            tokens: completion token ids, padded on the right; only advantages of tokens need them.
            mask: True on tokens that the policy sampled; only advantages of tokens need it.
        """

    def with_correctness(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None, mask: TokenMask | None, correct: PerRow | None
    ) -> PerRow | PerToken:
        """The advantages of a rollout whose correct completions are known; the on-policy module calls this.

        Args:
            correct: 1 for correct and 0 for wrong completions, NaN for unknown; None without a reward that judges
                correctness. Ignored by default.
        """
        return self(rewards, groups, tokens, mask)

    def tokens_and_mask(self, tokens: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens and their mask, for advantages of tokens. Raises ValueError if one of them is missing."""
        if tokens is None or mask is None:
            raise ValueError(f"{type(self).__name__} computes advantages of tokens, so it needs `tokens` and `mask`.")
        return tokens, mask

    def state_dict(self) -> dict[str, Any]:
        """State that is kept from rollout to rollout, as plain data for a checkpoint; empty by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue from the result of `state_dict`; an empty state, from another advantage's checkpoint, resets it."""


class JudgedAdvantage(Advantage):
    """Computes advantages from rewards and from which completions are right."""

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow | PerToken:
        return self.with_correctness(rewards, groups, tokens, mask, None)

    @abstractmethod
    def with_correctness(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None, mask: TokenMask | None, correct: PerRow | None
    ) -> PerRow | PerToken: ...

    @staticmethod
    def right(rewards: PerRow, correct: PerRow | None, by_total: Tensor, has_threshold: bool) -> PerRow:
        """1 for right and 0 for wrong completions; NaN for unknown ones and those that no reward applies to.

        Args:
            by_total: right completions by their total reward.
            has_threshold: whether the setting for that was made, and so comes before `correct`.
        """
        right = by_total.to(rewards.dtype) if has_threshold or correct is None else correct.to(rewards)
        return right.masked_fill(rewards.isnan(), torch.nan)


@dataclass
class GroupNorm(Advantage):
    """GRPO's advantage: (R_i - mean) / (std + eps) within the prompt's group (DeepSeekMath, arXiv 2402.03300, 4.1.2).

    The deviation is the sample's (divided by G - 1), as in TRL and verl; open-instruct uses the population's. A group
    whose rewards are all equal gets exactly zero. Rows with NaN get zero and do not count.

    Args:
        scale: divisor of the centred reward: group_std is the group's deviation, none leaves it (Dr. GRPO,
            arXiv 2503.20783), batch_std is the deviation of all rewards of the rollout on all processes (Lite PPO,
            arXiv 2508.08221).
        eps: added to the deviation; TRL uses 1e-4, verl 1e-6, OpenRLHF 1e-9.
        deviation: sample (G - 1) or population (G).
    """

    scale: Literal["group_std", "batch_std", "none"] = "group_std"
    eps: float = 1e-4
    deviation: Deviation = "sample"

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow:
        rewards = as_floats(rewards)
        mean, std, _ = group_statistics(rewards, groups, self.deviation)
        advantages = rewards - mean[groups]
        if self.scale == "group_std":
            advantages = advantages / (std[groups] + self.eps)
        elif self.scale == "batch_std":
            _, variance = global_moments(rewards, ~rewards.isnan(), self.reduce, self.deviation)
            advantages = advantages / (variance.sqrt() + self.eps)
        return advantages.nan_to_num(0.0)


@dataclass
class NoBaseline(Advantage):
    """A_i = R_i, for methods whose returns already include a baseline. Rows with NaN get zero."""

    needs_group = False

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow:
        return as_floats(rewards).nan_to_num(0.0)


@dataclass
class LeaveOneOut(Advantage):
    """RLOO: each completion relative to the mean of the others of its prompt (Ahmadian et al., arXiv 2402.14740).

    A_i = R_i - 1/(G-1) * sum_{j != i} R_j = G/(G-1) * (R_i - mean).

    Args:
        scale: batch_std divides by the deviation of all advantages of the rollout on all processes (TRL's
            `normalize_advantages`); their mean is zero in every group, so it is not subtracted.
        eps: added to that deviation.
    """

    scale: Literal["none", "batch_std"] = "none"
    eps: float = 1e-4

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow:
        rewards = as_floats(rewards)
        advantages = self._against_others(rewards, groups)
        if self.scale == "batch_std":
            _, variance = global_moments(advantages, ~rewards.isnan(), self.reduce)
            advantages = advantages / (variance.sqrt() + self.eps)
        return advantages

    def _against_others(self, rewards: Tensor, groups: Tensor) -> Tensor:
        mean, _, count = group_statistics(rewards, groups)
        factor = count / (count - 1).clamp(min=1)
        return (factor[groups] * (rewards - mean[groups])).nan_to_num(0.0)
