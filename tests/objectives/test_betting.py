"""The betting bound: exact coverage by enumeration, a slow direct computation beside it, and the sequential form."""

import itertools
import math

import pytest
import torch

from objectives import Betting, ConfidenceSequence, Hoeffding
from objectives.betting import plug_in_bets
from support.errors import ConfigError
from tests.helpers.capital import capitals

SEQUENCES = {
    size: torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)
    for size in (1, 2, 3, 5, 7, 9)
}


def direct_bound(costs: list[float], delta: float, horizon: int | None, grid: int = 2000) -> float:
    """The paper's capital process cost by cost, for every claimed mean of a grid; the smallest rejected one."""
    for claim in (step / grid for step in range(1, grid)):
        if any(capital >= 1 / delta for capital in capitals(costs, claim, delta, horizon)):
            return claim
    return 1.0


@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("delta", [0.1, 0.5])
def test_fails_at_most_delta_of_the_time_on_every_binary_sequence(size, delta):
    """Summed over all sequences, so no sampling error: P(bound < true mean) <= delta."""
    uppers = torch.tensor([Betting()(sequence, delta) for sequence in SEQUENCES[size]])
    for mean in (0.02, 0.1, 0.3, 0.5, 0.8, 0.97):
        probabilities = mean ** SEQUENCES[size].sum(-1) * (1 - mean) ** (1 - SEQUENCES[size]).sum(-1)
        assert float(probabilities[uppers < mean].sum()) <= delta
    if size == 9:
        assert float(uppers.min()) < 0.75  # it does say something


def test_fails_at_most_delta_of_the_time_on_three_values_of_another_range():
    values, weights, delta = (
        torch.tensor([-1.0, 0.5, 4.0], dtype=torch.float64),
        torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64),
        0.3,
    )
    mean, bound, failed = float((values * weights).sum()), Betting(-1, 4), 0.0
    for picks in itertools.product(range(3), repeat=6):
        if bound(values[list(picks)], delta) < mean:
            failed += float(weights[list(picks)].prod())
    assert 0 < failed <= delta


@pytest.mark.parametrize("horizon", [None, 7])
def test_an_observer_who_looks_after_every_cost_is_misled_at_most_delta_of_the_time(horizon):
    delta, shares = 0.25, []
    for mean in (0.1, 0.4, 0.7):
        misled = 0.0
        for costs in SEQUENCES[7]:
            sequence, wrong = Betting().sequence(delta, horizon), False
            for cost in costs:
                sequence.update(cost[None])
                wrong = wrong or sequence.below(mean)
            ones = int(costs.sum())
            misled += wrong * mean**ones * (1 - mean) ** (7 - ones)
        shares.append(misled)
    assert 0 < max(shares) <= delta


@pytest.mark.parametrize("horizon", [None, 60])
def test_agrees_with_the_direct_computation_on_a_grid(horizon):
    generator = torch.Generator().manual_seed(1)
    for power in (1, 4, 20):
        costs = torch.rand(60, generator=generator, dtype=torch.float64) ** power
        sequence = ConfidenceSequence(0, 1, 0.1, horizon)
        sequence.update(costs)
        direct = direct_bound(costs.tolist(), 0.1, horizon)
        assert direct - 1 / 2000 <= sequence.upper <= direct + 1e-9


@pytest.mark.parametrize("horizon", [None, 30])
def test_no_bet_depends_on_its_own_cost_or_a_later_one(horizon):
    costs = torch.rand(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bets = plug_in_bets(costs, 0.1, horizon)
    for place in range(30):
        changed = torch.cat([costs[:place], (costs[place:] + 0.5) % 1])
        after = plug_in_bets(changed, 0.1, horizon)
        assert torch.equal(after[: place + 1], bets[: place + 1])
        assert place == 29 or not torch.equal(after, bets)


def test_smaller_delta_never_gives_a_smaller_bound():
    generator = torch.Generator().manual_seed(3)
    for size, power in itertools.product((3, 40, 300), (1, 6)):
        costs = torch.rand(size, generator=generator, dtype=torch.float64) ** power
        uppers = [Betting()(costs, delta) for delta in (0.001, 0.01, 0.05, 0.1, 0.3, 0.6, 0.9)]
        assert uppers == sorted(uppers, reverse=True)


def test_invariant_under_affine_maps_of_the_range():
    costs = torch.rand(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64) ** 3
    upper = Betting()(costs, 0.1)
    for low, high in ((-5.0, -1.0), (0.0, 100.0), (-0.3, 0.4)):
        assert Betting(low, high)(low + (high - low) * costs, 0.1) == pytest.approx(
            low + (high - low) * upper, rel=1e-9
        )
        assert Betting(low, high).width(low + (high - low) * 0.3, (high - low) * 0.1, 50, 0.1) == pytest.approx(
            (high - low) * Betting().width(0.3, 0.1, 50, 0.1), rel=1e-6
        )


def test_the_seed_alone_draws_the_order_and_the_assumption_names_it():
    costs = torch.rand(100, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    bound = Betting(seed=7)
    order = bound.order(100)
    assert sorted(order.tolist()) == list(range(100)) and order.tolist() == Betting(-3, 9, seed=7).order(100).tolist()
    assert bound(costs, 0.1) == Betting(seed=7)(costs, 0.1) != Betting(seed=8)(costs, 0.1)
    placed = torch.empty_like(costs)
    placed[order] = costs[Betting(seed=8).order(100)]
    assert bound(placed, 0.1) == Betting(seed=8)(costs, 0.1)
    assert "seed 7" in bound.assumption and bound.seed == 7
    # A certificate of today must be recomputable on another machine.
    assert Betting().order(8).tolist() == [3, 7, 5, 2, 4, 1, 6, 0]


def test_bounds_with_different_settings_have_different_assumptions():
    """A recorded verdict is looked up by the assumption, so two bounds that differ at all must differ in it."""
    settings = [(0.0, 1.0), (0.0, 1.0 + 1e-9), (0.0, 1 / 3), (0.0, 0.333333), (-1e-7, 1.0)]
    assumptions = [kind(low, high).assumption for kind in (Betting, Hoeffding) for low, high in settings]
    assumptions += [Betting(seed=seed).assumption for seed in (1, 2)]
    assert len(set(assumptions)) == len(assumptions)


def test_extremes():
    assert Betting()(torch.ones(50), 0.1) == 1.0
    assert Betting()(torch.zeros(1), 0.01) == 1.0  # one cost shows nothing
    assert Betting()(torch.zeros(5000), 0.1) < 0.002
    assert 0.5 < Betting()(torch.full((5000,), 0.5), 0.1) < 0.51


@pytest.mark.parametrize("size", [1, 37, 500])
def test_batch_by_batch_the_verdict_of_the_fixed_test(size):
    generator = torch.Generator().manual_seed(6)
    bound = Betting(-1, 1, seed=3)
    costs = torch.rand(500, generator=generator, dtype=torch.float64) ** 4 * 2 - 1
    fixed = bound(costs, 0.05)
    for threshold in (fixed - 1e-6, fixed + 1e-6, fixed - 0.2, fixed + 0.2):
        sequence, decision = bound.sequence(0.05, horizon=500), None
        for positions in bound.order(500).split(size):
            sequence.update(costs[positions])
            decision = sequence.decide(threshold)
            if decision is not None:
                break
        assert decision is (fixed <= threshold)
    sequence = bound.sequence(0.05, 500)
    sequence.update(costs[bound.order(500)])
    assert sequence.upper == pytest.approx(fixed)


def test_stops_early_both_ways():
    bound = Betting()
    assert bound.sequence(0.1, 1000).decide(0.2) is None
    safe, hopeless = bound.sequence(0.1, 1000), bound.sequence(0.1, 1000)
    safe.update(torch.full((500,), 0.02))
    hopeless.update(torch.full((500,), 0.9))
    assert safe.decide(0.2) is True and hopeless.decide(0.2) is False
    assert bound.sequence(0.1, 5).decide(-0.5) is False and bound.sequence(0.1, 5).decide(1.0) is True


def test_futility_is_declared_only_where_no_costs_to_come_could_change_it():
    """Over every binary beginning and every binary end."""
    delta, threshold, declared = 0.3, 0.6, 0
    for seen in (1, 2, 3, 5):
        for beginning in SEQUENCES[seen]:
            sequence = ConfidenceSequence(0, 1, delta, 8)
            sequence.update(beginning)
            if sequence.decide(threshold) is False:
                declared += 1
                for end in itertools.product([0.0, 1.0], repeat=8 - seen):
                    whole = ConfidenceSequence(0, 1, delta, 8)
                    whole.update(torch.cat([beginning, torch.tensor(end, dtype=torch.float64)]))
                    assert not whole.below(threshold)
    assert declared > 0


def test_continues_from_its_state_and_refuses_other_settings():
    costs = torch.rand(90, generator=torch.Generator().manual_seed(8)) * 3
    whole, first, second = (ConfidenceSequence(0, 3, 0.1, 100) for _ in range(3))
    whole.update(costs)
    first.update(costs[:40])
    state = first.state_dict()
    assert all(isinstance(value, int | float | list) for value in state.values())
    second.load_state_dict(state)
    second.update(costs[40:])
    assert second.upper == whole.upper and len(second) == 90
    for other in (
        ConfidenceSequence(0, 3, 0.2, 100),
        ConfidenceSequence(0, 3, 0.1),
        ConfidenceSequence(0, 2, 0.1, 100),
    ):
        with pytest.raises(ValueError, match="error probability"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([0.1, math.nan], r"1 of 2 costs are NaN or infinite, the first at position 1.*cannot fail"),
        ([0.1, math.inf], "NaN or infinite"),
        (
            [0.1, 0.2, 1.01],
            r"costs in \[0, 1\], but 1 of 3 are outside, the first at position 2: 1\.01; set the true range",
        ),
        ([-0.01], "the first at position 0: -0.01"),
        ([], "at least 1 cost"),
    ],
)
def test_unusable_costs_are_refused_with_their_position(costs, message):
    with pytest.raises(ValueError, match=message) as raised:
        Betting()(torch.tensor(costs, dtype=torch.float64), 0.1)
    assert "\n" not in str(raised.value)
    if costs:
        with pytest.raises(ValueError, match=message):
            Betting().sequence(0.1).update(torch.tensor(costs, dtype=torch.float64))


def test_unusable_settings_are_refused():
    for delta in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="delta"):
            Betting()(torch.zeros(3), delta)
        with pytest.raises(ValueError, match="delta"):
            Betting().sequence(delta)
    with pytest.raises(ConfigError, match="horizon"):
        Betting().sequence(0.1, horizon=0)
    with pytest.raises(ConfigError, match="low must be below high"):
        Betting(1, 1)
    with pytest.raises(ConfigError, match="both finite"):
        Betting(0, math.inf)
    with pytest.raises(ConfigError, match="cost_scale: probability"):
        Betting().check(-math.inf, math.inf, False)
    sequence = Betting().sequence(0.1, horizon=3)
    with pytest.raises(ValueError, match="3 costs and would hold 4"):
        sequence.update(torch.zeros(4))
