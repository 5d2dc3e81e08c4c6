"""GRPO's loss and gradient against plain Python floats, on a softmax policy small enough to write out."""

import math

import pytest
import torch

from objectives import ClippedSurrogate, ConstantLength, GroupNorm, LeaveOneOut, SequenceMean, SequenceSum, TokenMean
from objectives.kl import kl_estimate

REWARDS = [1.0, 0.0, 0.0, 1.0, 0.5, 0.25]
LENGTHS = [1, 3, 2, 2, 1, 3]  # two prompts with three completions each
BETA, LOW, HIGH, EPS = 0.04, 0.2, 0.28, 1e-4


def logits(seed):
    return torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOKENS = torch.randint(3, (6, 3), generator=torch.Generator().manual_seed(5))
MASK = torch.tensor([[t < n for t in range(3)] for n in LENGTHS])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])


def plain_loss(theta):
    """Eq. 3 of DeepSeekMath, written out over Python floats."""
    old, reference = logits(1).tolist(), logits(2).tolist()

    def logprob(table, i, t):
        row = table[i][t]
        return row[int(TOKENS[i, t])] - math.log(sum(math.exp(v) for v in row))

    total = 0.0
    for first in (0, 3):
        group = REWARDS[first : first + 3]
        mean = sum(group) / 3
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 2)
        for i in range(first, first + 3):
            advantage = (REWARDS[i] - mean) / (std + EPS)
            row = 0.0
            for t in range(LENGTHS[i]):
                ratio = math.exp(logprob(theta, i, t) - logprob(old, i, t))
                d = logprob(theta, i, t) - logprob(reference, i, t)
                surrogate = min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)
                row += surrogate - BETA * (math.exp(-d) - 1 + d)
            total += row / LENGTHS[i]
    return -total / 6


def tensor_loss(theta):
    def gather(table):
        return table.log_softmax(-1).gather(-1, TOKENS[..., None])[..., 0]

    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    advantages = GroupNorm(eps=EPS)(rewards, GROUPS, TOKENS, MASK)[:, None].expand(6, 3)
    current = gather(theta)
    token_loss, _ = ClippedSurrogate(LOW, HIGH)(current, gather(logits(1)), advantages, MASK)
    token_loss = token_loss + BETA * kl_estimate(current, gather(logits(2)), "k3")
    return (token_loss * MASK * SequenceMean()(MASK).double()[:, None]).sum()


def test_loss_equals_plain_floats():
    assert float(tensor_loss(logits(0))) == pytest.approx(plain_loss(logits(0).tolist()), rel=1e-6)


def test_gradient_equals_finite_differences_of_plain_floats():
    theta = logits(0).requires_grad_()
    tensor_loss(theta).backward()
    step = 1e-6
    for i, t, v in [(i, t, v) for i in range(6) for t in range(3) for v in range(3)]:
        up, down = logits(0), logits(0)
        up[i, t, v] += step
        down[i, t, v] -= step
        slope = (plain_loss(up.tolist()) - plain_loss(down.tolist())) / (2 * step)
        assert float(theta.grad[i, t, v]) == pytest.approx(slope, abs=1e-6)


def test_equal_rewards_give_exactly_zero_and_groups_do_not_mix():
    rewards = torch.tensor([0.1, 0.1, 0.1, 3.0, 1.0, 2.0])
    for advantage in (GroupNorm(), LeaveOneOut()):
        values = advantage(rewards, GROUPS, TOKENS, MASK)
        assert values[:3].tolist() == [0.0, 0.0, 0.0]
        changed = advantage(torch.cat([torch.tensor([9.0, 0.0, 1.0]), rewards[3:]]), GROUPS, TOKENS, MASK)
        assert torch.equal(changed[3:], values[3:])


def test_leave_one_out_by_hand_and_nan_rows():
    values = LeaveOneOut()(torch.tensor([1.0, 0.0, 0.5, 2.0, float("nan"), 1.0]), GROUPS, TOKENS, MASK)
    assert values.tolist() == pytest.approx([0.75, -0.75, 0.0, 1.0, 0.0, -1.0])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (SequenceMean(), [1 / 3, 1 / 9, 0.0, 1 / 6]),
        (TokenMean(), [1 / 6] * 4),
        (SequenceSum(), [1 / 3] * 4),
        (ConstantLength(4), [1 / 12] * 4),
    ],
)
def test_aggregation_weights_by_hand(aggregation, expected):
    mask = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0]]).bool()  # a row without loss does not count
    assert aggregation(mask).tolist() == pytest.approx(expected)
