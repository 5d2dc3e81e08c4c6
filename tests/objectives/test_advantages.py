"""Advantages by hand and by enumeration; statistics over several processes."""

import copy
import itertools
import math
import statistics
import threading

import pytest
import torch

from objectives import (
    KTAE,
    GlobalNorm,
    GroupNorm,
    Hoeffding,
    LeaveOneOut,
    NoBaseline,
    PassAtK,
    PrefixTree,
    ReinforcePlusPlus,
    RunningMean,
)
from objectives.global_norm import at_last_token, normalised_sum, returns_to_go
from objectives.pass_at_k import pass_rate
from objectives.statistics import global_moments
from support.errors import ConfigError

REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.25])
GROUPS = torch.tensor([0, 0, 0, 1, 1, 1])
LENGTHS = [1, 3, 2, 2, 1, 3]
MASK = torch.tensor([[t < n for t in range(3)] for n in LENGTHS])
TOKENS = MASK.long()
NAN = float("nan")


def call(advantage, rewards=REWARDS, groups=GROUPS, mask=MASK):
    return advantage(rewards, groups, mask.long(), mask)


def test_deviations_and_scales_by_hand():
    first = REWARDS[:3].tolist()
    assert call(GroupNorm(eps=0.0))[0] == pytest.approx((1 - 1 / 3) / statistics.stdev(first))
    assert call(GroupNorm(eps=0.0, deviation="population"))[0] == pytest.approx((1 - 1 / 3) / statistics.pstdev(first))
    batch = call(GroupNorm("batch_std", eps=1e-4))
    assert batch.tolist() == pytest.approx(
        [
            (r - m) / (statistics.stdev(REWARDS.tolist()) + 1e-4)
            for r, m in zip(REWARDS.tolist(), [1 / 3] * 3 + [1.75 / 3] * 3, strict=True)
        ]
    )
    loo = call(LeaveOneOut())
    assert call(LeaveOneOut("batch_std")).tolist() == pytest.approx((loo / (loo.std() + 1e-4)).tolist())


@pytest.mark.parametrize(
    "advantage",
    [
        GroupNorm(),
        GroupNorm("none"),
        GroupNorm(deviation="population"),
        LeaveOneOut(),
        PassAtK(2, correct_at=0.5),
        PassAtK(2, "group", correct_at=0.5),
    ],
)
def test_one_prompts_group_never_influences_anothers(advantage):
    values = call(advantage)
    changed = call(advantage, torch.cat([torch.tensor([9.0, 0.0, -3.0]), REWARDS[3:]]))
    assert torch.equal(changed[3:], values[3:])
    shuffled = torch.tensor([4, 0, 3, 2, 5, 1])
    assert torch.equal(call(advantage, REWARDS[shuffled], GROUPS[shuffled], MASK[shuffled]), values[shuffled])


def test_rows_without_a_reward_get_zero_and_do_not_count():
    rewards = torch.tensor([1.0, 0.0, NAN, NAN, 0.5, 0.25])
    kept = torch.tensor([0, 1, 4, 5])
    for advantage in (
        GroupNorm(),
        GroupNorm("batch_std"),
        LeaveOneOut("batch_std"),
        GlobalNorm(),
        ReinforcePlusPlus(),
        PassAtK(1),
    ):
        values = call(advantage, rewards)
        assert not values[2:4].any()
        assert torch.allclose(values[kept], call(advantage, rewards[kept], GROUPS[kept], MASK[kept]))
    plain, group = call(ReinforcePlusPlus("none"), rewards), call(ReinforcePlusPlus("group"), rewards)
    assert not plain[2:4].any() and not group[2:4].any()


# ---- whitening over tokens -------------------------------------------------------------------------------------------


def test_reinforce_plus_plus_weighs_by_tokens():
    values = [r for r, n in zip(REWARDS.tolist(), LENGTHS, strict=True) for _ in range(n)]
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    found = call(ReinforcePlusPlus())
    assert found[MASK].tolist() == pytest.approx([(v - mean) / std for v in values], rel=1e-5)
    assert not found[~MASK].any()
    sample = call(ReinforcePlusPlus(deviation="sample"))
    assert sample[MASK].tolist() == pytest.approx([(v - mean) / statistics.stdev(values) for v in values], rel=1e-5)


def test_its_baseline_centres_each_group_first():
    centred = [r - m for r, m in zip(REWARDS.tolist(), [1 / 3] * 3 + [1.75 / 3] * 3, strict=True)]
    values = [v for v, n in zip(centred, LENGTHS, strict=True) for _ in range(n)]
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    assert call(ReinforcePlusPlus("group"))[MASK].tolist() == pytest.approx(
        [(v - mean) / std for v in values], rel=1e-5
    )


def test_returns_of_token_rewards_by_hand():
    mask = torch.tensor([[True, False, True, True, False]])  # a forced token in between, padding at the end
    rewards = at_last_token(torch.tensor([1.0]), mask)
    assert rewards.tolist() == [[0, 0, 0, 1, 0]]
    rewards = rewards - 0.1 * torch.tensor([[1.0, 0.0, 2.0, 3.0, 0.0]])
    assert returns_to_go(rewards, mask, 1.0)[mask].tolist() == pytest.approx([0.4, 0.5, 0.7])
    assert returns_to_go(rewards, mask, 0.5)[mask].tolist() == pytest.approx(
        [-0.1 + 0.5 * (-0.2 + 0.35), -0.2 + 0.35, 0.7]
    )


def test_token_rewards_reach_every_earlier_token():
    by_token = at_last_token(REWARDS, MASK) - 0.1 * MASK
    returns = [r - 0.1 * (n - t) for r, n in zip(REWARDS.tolist(), LENGTHS, strict=True) for t in range(n)]
    mean, std = statistics.fmean(returns), statistics.pstdev(returns)
    found = call(ReinforcePlusPlus(), by_token)
    assert found[MASK].tolist() == pytest.approx([(v - mean) / std for v in returns], rel=1e-4)


@pytest.mark.parametrize(
    "advantage", [ReinforcePlusPlus(), ReinforcePlusPlus("group"), GlobalNorm(), GroupNorm("batch_std")]
)
def test_equal_rewards_everywhere_give_exactly_zero(advantage):
    assert not call(advantage, torch.full((6,), 0.1)).any()


def test_normalised_rewards_count_alike_and_absent_ones_not_at_all():
    accuracy, style = torch.tensor([1.0, 0, 0, 1, 1, 0]), torch.tensor([0.01, 0.02, 0.03, NAN, 0.0, 0.02])
    total = normalised_sum(torch.stack([accuracy, style]), torch.tensor([1.0, 2.0]), GROUPS, eps=0.0)
    first = [
        (a - 1 / 3) / statistics.stdev([1, 0, 0]) + 2 * (s - 0.02) / 0.01 for a, s in [(1, 0.01), (0, 0.02), (0, 0.03)]
    ]
    assert total[:3].tolist() == pytest.approx(first, rel=1e-4)
    assert float(total[3]) == pytest.approx((1 - 2 / 3) / statistics.stdev([1, 1, 0])), (
        "a reward that does not apply adds nothing"
    )
    assert normalised_sum(torch.full((2, 6), NAN), torch.ones(2), GROUPS).isnan().all()
    gdpo = call(GlobalNorm(), total)
    assert float(gdpo.mean()) == pytest.approx(0, abs=1e-6) and float(gdpo.std()) == pytest.approx(1, abs=1e-3)


# ---- a running mean --------------------------------------------------------------------------------------------------


def one_each(advantage, rewards):
    return call(
        advantage, torch.tensor(rewards), torch.arange(len(rewards)), torch.ones(len(rewards), 1, dtype=torch.bool)
    ).tolist()


def test_a_running_mean_judges_a_rollout_by_those_before_it():
    advantage = RunningMean(decay=0.75)
    assert one_each(advantage, [1.0, 0.0, 2.0]) == [0.0, -1.0, 1.0] and advantage.baseline == 1.0, (
        "the first by its own mean"
    )
    assert one_each(advantage, [3.0, 2.0, NAN]) == [2.0, 1.0, 0.0] and advantage.baseline == 0.75 * 1.0 + 0.25 * 2.5
    assert one_each(advantage, [NAN, NAN]) == [0.0, 0.0] and advantage.baseline == 1.375, (
        "a rollout that nothing applied to leaves it"
    )
    assert one_each(advantage, [0.0]) == [-1.375] and advantage.baseline == 0.75 * 1.375
    assert one_each(RunningMean(), [NAN]) == [0.0]


def test_its_state_goes_on_where_it_stopped_and_starts_anew_without_one():
    first, second = RunningMean(0.3), RunningMean(0.3)
    one_each(first, [0.1, 0.7, 0.4])
    second.load_state_dict(first.state_dict())
    assert one_each(first, [0.2, 0.9]) == one_each(second, [0.2, 0.9]) and first.baseline == second.baseline
    second.load_state_dict({})
    assert one_each(second, [1.0, 0.0]) == [0.5, -0.5]
    assert GroupNorm().state_dict() == {}


# ---- several processes -----------------------------------------------------------------------------------------------


class Ranks:
    """Threads in place of processes: `reduce` waits for all of them and hands each the sum."""

    def __init__(self, size):
        self.barrier, self.held = threading.Barrier(size), [None] * size

    def reduce_of(self, rank):
        def reduce(values):
            self.held[rank] = values
            self.barrier.wait(10)
            total = sum(self.held)
            self.barrier.wait(10)
            return total

        return reduce


@pytest.mark.parametrize(
    "make",
    [
        lambda: GroupNorm("batch_std"),
        lambda: LeaveOneOut("batch_std"),
        lambda: GlobalNorm(),
        lambda: ReinforcePlusPlus(),
        lambda: ReinforcePlusPlus("group"),
        lambda: RunningMean(),
    ],
)
def test_statistics_are_those_of_all_processes(make):
    """Two processes with one group each, whose completions are padded to different widths, against one with both."""
    whole, ranks, found = call(make()), Ranks(2), [None, None]
    alone = [call(make(), REWARDS[:3], GROUPS[:3], MASK[:3]), call(make(), REWARDS[3:], GROUPS[:3], MASK[3:])]
    padded = torch.cat([MASK[3:], torch.zeros(3, 2, dtype=torch.bool)], dim=1)

    def work(rank):
        advantage = make()
        advantage.prepare(ranks.reduce_of(rank))
        found[rank] = call(advantage, REWARDS[3 * rank : 3 * rank + 3], GROUPS[:3], [MASK[:3], padded][rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join(10) for thread in threads]
    second = found[1][:, :3] if found[1].dim() == 2 else found[1]
    assert torch.allclose(torch.cat([found[0], second]), whole, atol=1e-6)
    assert not torch.allclose(torch.cat(alone), whole, atol=1e-2), "each process by itself would have other numbers"


def test_moments_of_equal_numbers_are_exact_and_of_none_are_zero():
    values = torch.full((7, 11), 0.1)
    mean, variance = global_moments(values, torch.ones(7, 11, dtype=torch.bool))
    assert float(mean) == float(values[0, 0].double()) and float(variance) == 0.0
    assert [float(x) for x in global_moments(values, torch.zeros(7, 11, dtype=torch.bool))] == [0.0, 0.0]


# ---- pass@k ----------------------------------------------------------------------------------------------------------


def one_group(advantage, right):
    size = len(right)
    rewards = torch.tensor(right, dtype=torch.float64)
    return advantage(
        rewards, torch.zeros(size, dtype=torch.long), torch.zeros(size, 1).long(), torch.ones(size, 1).bool()
    )


@pytest.mark.parametrize(("size", "k"), [(2, 1), (3, 2), (4, 2), (4, 3), (5, 2)])
def test_the_expected_gradient_is_that_of_pass_at_k(size, k):
    """Over every possible group of completions, each one of three answers of which the first is right."""
    theta = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(1 - (1 - theta.softmax(0)[0]) ** k, theta)[0]
    log = theta.log_softmax(0)
    total = torch.zeros(())
    for answers in itertools.product(range(3), repeat=size):
        chance = math.exp(sum(float(log[a].detach()) for a in answers))
        values = one_group(PassAtK(k), [float(a == 0) for a in answers])
        total = (
            total + chance * sum(float(values[i]) * log[a] for i, a in enumerate(answers)) / size
        )  # SequenceSum's 1/N
    assert torch.allclose(torch.autograd.grad(total, theta)[0], exact, atol=1e-12)


@pytest.mark.parametrize("right", [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_baseline_group_is_the_mean_over_all_sets_of_k(right, k):
    """Pass@k training's derivation: the mean over the sets of k with i of the set's normalised reward."""
    sets = [set(s) for s in itertools.combinations(range(4), k)]
    scores = [max(right[i] for i in s) for s in sets]
    mean = statistics.fmean(scores)
    std = math.sqrt(mean * (1 - mean))
    expected = [
        0.0
        if std == 0
        else statistics.fmean((score - mean) / std for s, score in zip(sets, scores, strict=True) if i in s)
        for i in range(4)
    ]
    assert one_group(PassAtK(k, "group"), right).tolist() == pytest.approx(expected, abs=1e-12)


def test_k_of_one_is_rloo_and_hand_values_of_two():
    right = [1.0, 0.0, 0.0, 1.0]
    assert one_group(PassAtK(1), right).tolist() == pytest.approx(one_group(LeaveOneOut(), right).tolist())
    # k = 2 of 4 with one right: it earned 1 and the others' pass@2 is 0; a wrong one earned 1/3 and the pass@2 of
    # its others is 2/3
    assert one_group(PassAtK(2), [1.0, 0.0, 0.0, 0.0]).tolist() == pytest.approx([2.0, -2 / 3, -2 / 3, -2 / 3])
    assert one_group(PassAtK(2), [0.0] * 4).tolist() == one_group(PassAtK(2), [1.0] * 4).tolist() == [0.0] * 4
    assert float(pass_rate(torch.tensor(10.0), torch.tensor(3.0), 4)) == pytest.approx(
        1 - math.comb(7, 4) / math.comb(10, 4)
    )


def test_mistakes_are_refused():
    with pytest.raises(ConfigError, match="needs groups of at least 4"):
        call(PassAtK(3))
    with pytest.raises(ConfigError, match="k is 0; set it to 1 or more"):
        PassAtK(0)
    with pytest.raises(ConfigError, match="discount"):
        ReinforcePlusPlus(discount=0.0)
    with pytest.raises(ConfigError, match="decay is 1"):
        RunningMean(1)


@pytest.mark.parametrize(
    "advantage", [GroupNorm(), LeaveOneOut(), NoBaseline(), GlobalNorm(), RunningMean(), PassAtK(1)], ids=type
)
def test_integer_rewards_without_tokens(advantage):
    """Rewards as a user's own code has them: integers, and neither tokens nor mask where nothing depends on them."""
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    integers, floats = torch.tensor([1, 0, 2, 3, 3, 0]), torch.tensor([1.0, 0.0, 2.0, 3.0, 3.0, 0.0])
    assert torch.equal(copy.deepcopy(advantage)(integers, groups), copy.deepcopy(advantage)(floats, groups))


def test_an_advantage_of_tokens_says_that_it_needs_them():
    for advantage in (KTAE(), PrefixTree(), ReinforcePlusPlus()):
        with pytest.raises(ValueError, match=rf"{type(advantage).__name__} computes advantages of tokens, so it needs"):
            advantage(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]))


def test_pass_rates_and_bounds_of_plain_lists():
    assert pass_rate([4, 4], [1, 0], 2).tolist() == [0.5, 0.0]
    assert Hoeffding(0, 1)([0, 1, 0, 1], 0.1) == Hoeffding(0, 1)(torch.tensor([0.0, 1.0, 0.0, 1.0]), 0.1)
