"""Rewards and advantages by mode: AdaptThink (arXiv 2505.13417) and AutoThink (arXiv 2505.10832)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from objectives.statistics import group_statistics


def adapt_think_advantage(
    rewards: Float[Tensor, "rows"], no_thinking: Bool[Tensor, "rows"], reference: Float[Tensor, "rows"], delta: float
) -> Float[Tensor, "rows"]:
    """AdaptThink, eq. 4: A = 1[y_1 = </think>] delta + R - mean R_ref(x).

    This is the penalty form of the constraint: maximise NoThinking while the expected reward is at least the initial
    policy's.

    Args:
        reference: the initial policy's mean reward on the row's prompt.
        delta: reward that may be lost in exchange for not thinking.
    """
    return delta * no_thinking + rewards - reference


def naive_reward(
    correct: Bool[Tensor, "rows"],
    thinking: Bool[Tensor, "rows"],
    parsed: Bool[Tensor, "rows"],
    unparsed_no_thinking: float = 0.0,
) -> Float[Tensor, "rows"]:
    """AutoThink, eq. 2: thinking earns +1 or 0, answering at once +2 or -1.

    Args:
        parsed: rows with an answer after the reasoning.
        unparsed_no_thinking: reward of a row that answers at once without an answer: 0 in the official code, which is
            more than a wrong answer earns; -1 makes both equal.
    """
    at_once = torch.where(correct, 2.0, torch.where(parsed, -1.0, unparsed_no_thinking))
    return torch.where(thinking, correct.float(), at_once)


def balance_penalties(thinking_share: float, gamma: float, slope: float) -> tuple[float, float]:
    """AutoThink, eqs. 3 and 4: penalties of the over-represented mode, (thinking, no thinking), both in [0, 1].

    Args:
        thinking_share: z, the fraction of all completions of the rollout on all processes that think.
        gamma: fraction above which a mode is penalised.
        slope: slope of the penalty, the paper's lambda.
    """

    def penalty(share: float) -> float:
        return min(max((share - gamma) * slope, 0.0), 1.0)

    return penalty(thinking_share), penalty(1 - thinking_share)


def balanced_reward(
    rewards: Float[Tensor, "rows"],
    correct: Bool[Tensor, "rows"],
    thinking: Bool[Tensor, "rows"],
    thinking_share: float,
    gamma: float = 0.5,
    slope: float = 2.0,
) -> Float[Tensor, "rows"]:
    """AutoThink's stage 1: r <- (1 - d) r + d r*, d the penalty of the row's mode.

    r* is 0 (correct) or -1 for thinking, and +1 or -2 for answering at once: the full penalty costs either mode one
    point.
    """
    penalty_thinking, penalty_at_once = balance_penalties(thinking_share, gamma, slope)
    penalty = torch.where(thinking, penalty_thinking, penalty_at_once)
    target = torch.where(thinking, correct.float() - 1, torch.where(correct, 1.0, -2.0))
    return (1 - penalty) * rewards + penalty * target


def length_shaped(
    rewards: Float[Tensor, "rows"],
    correct: Bool[Tensor, "rows"],
    lengths: Float[Tensor, "rows"] | Int[Tensor, "rows"],
    groups: Int[Tensor, "rows"],
    alpha: float = 0.05,
    beta: float = 0.05,
) -> Float[Tensor, "rows"]:
    """AutoThink's stage 3, eq. 6: a correct completion earns e^(-alpha y) - 1 more, a wrong one 1 - e^(-beta y).

    y is the z-score of the length (sample deviation) among the prompt's right completions, or among its wrong ones,
    with both modes pooled. A completion that is the only one of its kind gets nothing. Rows whose length is NaN do not
    count.
    """
    # A prompt's correct and wrong completions are groups of their own.
    subset = 2 * groups + correct.long()
    mean, std, count = group_statistics(lengths.float(), subset)
    y = (lengths - mean[subset]) / std[subset].clamp(min=1e-6)
    shaping = torch.where(correct, torch.exp(-alpha * y) - 1, 1 - torch.exp(-beta * y))
    return rewards + torch.where(count[subset] > 1, shaping, 0.0)
