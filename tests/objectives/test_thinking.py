"""Reward tables and sequence ratios by hand."""

import math

import pytest
import torch

from objectives import SequenceMean, SequenceSurrogate
from objectives.thinking import adapt_think_advantage, balance_penalties, balanced_reward, length_shaped, naive_reward
from support.errors import ConfigError


def flags(text):
    return torch.tensor([letter == "1" for letter in text])


def test_adapt_think_advantage_by_hand():
    found = adapt_think_advantage(
        torch.tensor([1.0, 0.0, 1.0, 0.0]), flags("1100"), torch.tensor([0.75, 0.75, 0.25, 0.25]), 0.05
    )
    assert found.tolist() == pytest.approx([0.30, -0.70, 0.75, -0.25])


def test_naive_table():
    correct, thinking, parsed = flags("100100"), flags("111000"), flags("110110")
    assert naive_reward(correct, thinking, parsed).tolist() == [1, 0, 0, 2, -1, 0]
    assert naive_reward(correct, thinking, parsed, unparsed_no_thinking=-1.0).tolist() == [1, 0, 0, 2, -1, -1]


def test_balance_of_a_batch_of_four():
    correct, thinking = flags("1101"), flags("1110")
    rewards = naive_reward(correct, thinking, flags("1111"))
    assert balance_penalties(0.75, 0.5, 2.0) == (0.5, 0.0)
    assert balanced_reward(rewards, correct, thinking, 0.75).tolist() == [0.5, 0.5, -0.5, 2.0]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.5, [1, 0, 2, -1]), (1.0, [0, -1, 2, -1]), (0.0, [1, 0, 1, -2]), (0.25, [1, 0, 1.5, -1.5])],
)
def test_balance_pulls_the_larger_mode_down(share, expected):
    correct, thinking = flags("1010"), flags("1100")
    rewards = naive_reward(correct, thinking, flags("1111"))
    assert balanced_reward(rewards, correct, thinking, share).tolist() == pytest.approx(expected)


def test_shaping_by_length():
    lengths, groups = torch.tensor([2, 4, 9, 5, 5, 3]), torch.tensor([0, 0, 0, 1, 1, 1])
    found = length_shaped(torch.zeros(6), flags("110100"), lengths, groups)
    assert found[:2].tolist() == pytest.approx([0.0360, -0.0347], abs=5e-5)  # y = -+0.7071
    assert found[2] == 0 and found[3] == 0, "alone among the equally right or wrong of its prompt"
    assert found[4:].tolist() == pytest.approx(
        [1 - math.exp(-0.05 * 0.5**0.5), 1 - math.exp(0.05 * 0.5**0.5)], abs=1e-6
    ), "longer gains"
    equal = length_shaped(torch.zeros(2), flags("11"), torch.tensor([4, 4]), torch.tensor([0, 0]))
    assert equal.tolist() == [0, 0]


LOGPROBS = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, -0.5, -0.5]], dtype=torch.float64)
BEHAVIOUR = torch.tensor([[-0.7, -2.1, 0.0], [-0.6, -0.5, -0.4]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(("root", "ratios"), [(True, [math.exp(-0.1), 1.0]), (False, [math.exp(-0.2), 1.0])])
def test_sequence_ratio_and_its_gradient(root, ratios):
    """d s_i / d log pi_t = s_i / |o_i| with the length root, s_i without; other sequences do not matter."""
    logprobs = LOGPROBS.clone().requires_grad_()
    advantages = torch.tensor([[2.0], [-3.0]], dtype=torch.float64).expand(2, 3)
    loss, metrics = SequenceSurrogate(1.0, 9.0, length_root=root)(logprobs, BEHAVIOUR, advantages, MASK)
    total = (loss * MASK * SequenceMean()(MASK)[:, None]).sum()
    assert total.item() == pytest.approx(-(2 * ratios[0] - 3 * ratios[1]) / 2)
    total.backward()
    lengths = [2, 3] if root else [1, 1]
    for row, (a, s, n) in enumerate(zip((2.0, -3.0), ratios, lengths, strict=True)):
        assert logprobs.grad[row].tolist() == pytest.approx([-a * s / n / 2 * m for m in MASK[row].tolist()])
    assert float(metrics["ratio"]) == pytest.approx(2 * ratios[0] + 3 * ratios[1])


def test_clipping_is_for_the_whole_sequence():
    behaviour = LOGPROBS + torch.tensor([[-0.9, 0.0, 0.0], [1.2, 0.0, 0.0]])  # roots exp(0.45) and exp(-0.4)
    for sign, clipped in ((1, [True, False]), (-1, [False, True])):
        logprobs = LOGPROBS.clone().requires_grad_()
        loss, metrics = SequenceSurrogate(0.2, 0.2)(
            logprobs, behaviour, torch.full((2, 3), float(sign), dtype=torch.float64), MASK
        )
        (loss * MASK).sum().backward()
        assert [bool((row == 0).all()) for row in logprobs.grad] == clipped
        assert float(metrics["clip_fraction"]) == sum(n for n, c in zip((2, 3), clipped, strict=True) if c)


def test_wrong_ranges_are_refused():
    with pytest.raises(ConfigError, match="0 <= clip_low <= 1"):
        SequenceSurrogate(clip_low=-0.1)
