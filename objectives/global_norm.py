"""Advantages that are whitened over the whole rollout, on all processes, instead of within a group.

A group of equal rewards does not get zero here, because its rewards are compared with those of other prompts.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from objectives.advantages import Advantage
from objectives.shapes import Groups, PerRow, PerToken, TokenIds, TokenMask
from objectives.statistics import Deviation, as_floats, global_moments, group_statistics
from support.errors import ConfigError


def at_last_token(values: PerRow, mask: TokenMask) -> PerToken:
    """Each row's value on its last masked token, zero elsewhere: the completion's reward as per-token rewards."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(last, values[:, None], torch.zeros_like(values)[:, None])


def returns_to_go(rewards: PerToken, mask: TokenMask, discount: float) -> PerToken:
    """sum_{s >= t} discount^(s - t) r_s over the masked tokens; other tokens have no reward and are not discounted."""
    returns, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        running = torch.where(mask[:, t], rewards[:, t] + discount * running, running)
        returns[:, t] = running
    return returns


@dataclass
class ReinforcePlusPlus(Advantage):
    """REINFORCE++ (Hu et al., arXiv 2501.03262): a return for every token, whitened over all tokens of the rollout.

    G_t = sum_{s >= t} discount^(s - t) r_s, A_t = (G_t - mean) / sqrt(max(variance, floor)). Both moments are over all
    tokens that the policy sampled, so that long completions weigh more. The KL penalty is part of each token's reward
    (`kl.placement: token_reward`).

    With baseline "group" (REINFORCE++-baseline) the mean of the prompt's group is subtracted from the reward before the
    whitening.

    Args:
        baseline: subtracted before the whitening: none, or the mean of the group.
        discount: gamma of the returns.
        floor: minimum variance to divide by.
        deviation: population, as in OpenRLHF (the authors' code), or sample, as in verl.
    """

    baseline: Literal["none", "group"] = "none"
    discount: float = 1.0
    floor: float = 1e-8
    deviation: Deviation = "population"

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1 or self.floor <= 0:
            raise ConfigError(
                f"ReinforcePlusPlus: needs 0 < discount <= 1 and floor > 0, got {self.discount} and {self.floor}."
            )
        self.token_rewards = self.baseline == "none"  # a group's mean needs one reward per completion
        self.needs_group = self.baseline == "group"

    def __call__(
        self, rewards: PerRow | PerToken, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerToken:
        tokens, mask = self.tokens_and_mask(tokens, mask)
        rewards = as_floats(rewards)
        if self.baseline == "group":
            rewards = rewards - group_statistics(rewards, groups)[0][groups]
        by_token = rewards if rewards.dim() == 2 else at_last_token(rewards, mask)
        counted = mask & ~by_token.isnan().any(1, keepdim=True)
        returns = returns_to_go(by_token.nan_to_num(0.0), counted, self.discount)
        mean, variance = global_moments(returns, counted, self.reduce, self.deviation)
        return torch.where(counted, (returns - mean) / variance.clamp(min=self.floor).sqrt(), torch.zeros_like(returns))


@dataclass
class GlobalNorm(Advantage):
    """(R_i - mean) / (std + eps) over all completions of the rollout on all processes.

    It is the second half of GDPO, see `normalised_sum`.

    Args:
        eps: added to the deviation.
        deviation: sample or population.
    """

    needs_group = False

    eps: float = 1e-4
    deviation: Deviation = "sample"

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow:
        rewards = as_floats(rewards)
        mean, variance = global_moments(rewards, ~rewards.isnan(), self.reduce, self.deviation)
        return ((rewards - mean) / (variance.sqrt() + self.eps)).nan_to_num(0.0)


def normalised_sum(
    rewards: Float[Tensor, "kinds rows"], weights: Float[Tensor, "kinds"], groups: Groups, eps: float = 1e-4
) -> PerRow:
    """sum_k w_k (R_k - mean_k) / (std_k + eps): each reward is normalised within its group before the sum.

    Source: GDPO, arXiv 2601.05242. A reward that varies little then counts as much as one that varies a lot. A NaN
    reward is omitted from its row's sum; the sum is NaN if all rewards are.
    """
    total = torch.zeros_like(rewards[0])
    for kind, weight in zip(rewards, weights, strict=True):
        mean, std, _ = group_statistics(kind, groups)
        total = total + (weight * (kind - mean[groups]) / (std[groups] + eps)).nan_to_num(0.0)
    return torch.where(rewards.isnan().all(0), torch.nan, total)
