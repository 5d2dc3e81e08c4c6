"""GAE and the value loss: by hand, by a recursion over lists, by finite differences, and beside others' conventions."""

import math
import random
import threading

import pytest
import torch

from objectives import GAE, GroupNorm
from objectives.gae import explained_variance, value_loss
from support.errors import ConfigError
from tests.objectives.test_advantages import Ranks

NAN = float("nan")


def by_definition(rewards, values, mask, segments, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l} over the sampled tokens of one row's episodes, each summed out anew."""
    result, targets = [0.0] * len(rewards), [0.0] * len(rewards)
    for episode in sorted(set(segments)):
        tokens = [t for t in range(len(rewards)) if mask[t] and segments[t] == episode]
        for position, t in enumerate(tokens):
            total = 0.0
            for later in range(position, len(tokens)):
                here = tokens[later]
                after = values[tokens[later + 1]] if later + 1 < len(tokens) else 0.0
                total += (gamma * lam) ** (later - position) * (rewards[here] + gamma * after - values[here])
            result[t], targets[t] = total, total + values[t]
    return result, targets


def test_three_rows_of_unequal_lengths_by_hand():
    """gamma 1/2 and lambda 1/2: with delta_t = r_t + V_{t+1}/2 - V_t, A_t = delta_t + A_{t+1}/4."""
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 9.0], [3.0, 9.0, 9.0]])
    values = torch.tensor([[0.4, 0.2, 0.6], [1.0, 4.0, 7.0], [1.0, 7.0, 7.0]])
    advantages, targets = GAE(gamma=0.5, lam=0.5).estimate(rewards, values, mask)
    # Row 0: deltas -0.3, 0.1, 0.4. Row 1: 1.0, -2.0. Row 2: 2.0.
    expected = torch.tensor([[-0.25, 0.2, 0.4], [0.5, -2.0, 0.0], [2.0, 0.0, 0.0]])
    assert torch.allclose(advantages, expected)
    assert torch.allclose(targets, torch.tensor([[0.15, 0.4, 1.0], [1.5, 2.0, 0.0], [3.0, 0.0, 0.0]]))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
@pytest.mark.parametrize("turns", [False, True])
def test_random_masks_and_turns_equal_the_definition(gamma, lam, turns):
    rng = random.Random(f"{gamma} {lam} {turns}")
    rows, time = 40, 9
    mask = torch.tensor([[rng.random() < 0.7 for _ in range(time)] for _ in range(rows)])
    numbers = [sorted(rng.randrange(3) for _ in range(time)) for _ in range(rows)]
    # The environment's tokens have no turn of their own.
    segments = torch.tensor(numbers).masked_fill(~mask, -1) if turns else None
    rewards, values = (torch.randn(rows, time, dtype=torch.float64) for _ in range(2))
    advantages, targets = GAE(gamma, lam).estimate(rewards, values, mask, segments)
    for row in range(rows):
        episodes = numbers[row] if turns else [0] * time
        expected = by_definition(rewards[row].tolist(), values[row].tolist(), mask[row].tolist(), episodes, gamma, lam)
        assert advantages[row].tolist() == pytest.approx(expected[0], abs=1e-12)
        assert targets[row].tolist() == pytest.approx(expected[1], abs=1e-12)


def test_lambda_one_is_the_return_less_the_value_and_unknown_rows_teach_nothing():
    mask = torch.ones(2, 3, dtype=torch.bool)
    rewards, values = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, NAN]]), torch.randn(2, 3)
    advantages, targets = GAE(lam=1.0).estimate(rewards, values, mask)
    assert torch.allclose(targets[0], torch.tensor([1.5, 1.5, 1.0]))
    assert torch.allclose(advantages[0], targets[0] - values[0], atol=1e-6)
    assert (advantages[1] == 0).all() and targets[1].isnan().all()


def test_normalised_advantages_have_mean_zero_and_deviation_one_over_the_counted_tokens():
    advantages = torch.randn(5, 6, dtype=torch.float64) * 3 + 2
    mask = torch.rand(5, 6) < 0.6
    chosen = advantages[mask].tolist()
    mean = math.fsum(chosen) / len(chosen)
    for deviation, less in (("sample", 1), ("population", 0)):
        variance = math.fsum((x - mean) ** 2 for x in chosen) / (len(chosen) - less)
        result = GAE(deviation=deviation).normalised(advantages, mask)
        assert result[mask].tolist() == pytest.approx([(x - mean) / math.sqrt(variance + 1e-8) for x in chosen])
        assert (result[~mask] == 0).all()
    assert GAE(normalise=False).normalised(advantages, mask) is advantages


def test_two_processes_normalise_over_both():
    first, second = torch.randn(3, 4), torch.randn(2, 6) * 3 + 1
    everything, ranks, results = torch.cat([first.flatten(), second.flatten()]), Ranks(2), [None, None]

    def work(rank):
        advantage, values = GAE(), [first, second][rank]
        advantage.prepare(ranks.reduce_of(rank))
        results[rank] = advantage.normalised(values, torch.ones_like(values, dtype=torch.bool)).flatten()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join(10) for thread in threads]
    assert torch.allclose(torch.cat(results), (everything - everything.mean()) / everything.std(), atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_gradient_of_the_value_loss_is_that_of_finite_differences(clip):
    torch.manual_seed(0)
    old, targets = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    values = (old + 0.4 * torch.randn(50, dtype=torch.float64)).requires_grad_()
    loss, clipped = value_loss(values, old, targets, clip)
    loss.sum().backward()
    step = 1e-6
    for i in range(50):

        def at(shift, i=i):
            moved = values.detach()[i].item() + shift
            error = (moved - targets[i].item()) ** 2
            if clip is not None:
                inside = min(max(moved, old[i].item() - clip), old[i].item() + clip)
                error = max(error, (inside - targets[i].item()) ** 2)
            return error / 2

        assert loss[i].item() == pytest.approx(at(0.0))
        assert values.grad[i].item() == pytest.approx((at(step) - at(-step)) / (2 * step), abs=1e-5)
    assert bool(clipped.any()) == (clip is not None)
    if clip is not None:  # beyond the clip and towards the target there is nothing left to learn
        assert (values.grad[clipped] == 0).all() and (values.grad[~clipped] != 0).all()


def test_values_within_the_range_are_not_counted_as_clipped_because_of_rounding():
    old = torch.rand(10_000) * 3 + 0.1
    values = old + (torch.rand(10_000) - 0.5) * 0.3
    assert not value_loss(values, old, torch.rand(10_000), 0.2)[1].any()


def test_explained_variance_of_known_critics():
    targets, mask = torch.tensor([[1.0, 2.0], [3.0, 100.0]]), torch.tensor([[True, True], [True, False]])
    assert explained_variance(targets, targets, mask) == 1
    assert explained_variance(torch.full_like(targets, 7.0), targets, mask) == 0
    assert explained_variance(-targets, targets, mask) == pytest.approx(-3)
    assert explained_variance(targets, torch.ones_like(targets), mask) is None


def test_bad_settings_and_a_critic_that_is_missing_or_unused(reasoner):
    from lightning_modules import GRPO, PPO
    from rewards import FunctionReward
    from tests.helpers import build, digits

    for wrong in ({"gamma": 0.0}, {"lam": 1.1}, {"eps": 0.0}):
        with pytest.raises(ConfigError, match="set advantage.gamma above 0"):
            GAE(**wrong)
    with pytest.raises(ConfigError, match="needs the values of a critic"):
        GAE()(torch.zeros(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ConfigError, match="GAE, which needs a critic, and GRPO has none"):
        build(reasoner, [FunctionReward(digits)], GRPO, advantage=GAE())
    with pytest.raises(ConfigError, match="PPO has a critic, whose values GroupNorm does not use"):
        build(reasoner, [FunctionReward(digits)], PPO, advantage=GroupNorm())
