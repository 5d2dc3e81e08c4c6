"""Bounds against tables and coverage; the augmented cost's gradient by enumeration."""

import math

import pytest
import torch
from scipy import stats

from objectives import ClopperPearson, EmpiricalBernstein, Hoeffding, StudentT
from objectives.constraint import CostWindow, DualVariable, augmented_cost, inflation


def test_student_t_against_the_printed_table():
    # t_{0.95, 4} = 2.132; mean 3, deviation sqrt(2.5)
    assert StudentT()(torch.tensor([1.0, 2, 3, 4, 5]), 0.05) == pytest.approx(3 + 2.132 * math.sqrt(2.5 / 5), abs=1e-3)
    assert StudentT()(torch.full((10,), 0.1), 0.1) == pytest.approx(0.1, abs=1e-7)


def test_exact_bounds_by_hand():
    assert ClopperPearson()(torch.zeros(29), 0.05) == pytest.approx(1 - 0.05 ** (1 / 29))
    assert ClopperPearson()(torch.ones(3), 0.05) == 1.0
    costs = torch.tensor([0.0] * 8 + [1.0] * 2)
    upper = ClopperPearson()(costs, 0.1)
    assert stats.binom.cdf(2, 10, upper) == pytest.approx(0.1)  # the definition of the bound
    assert Hoeffding()(costs, 0.1) == pytest.approx(0.2 + math.sqrt(math.log(10) / 20))


@pytest.mark.parametrize("bound", [ClopperPearson(), Hoeffding(), EmpiricalBernstein()])
def test_exact_bounds_fail_at_most_delta_of_the_time(bound):
    """Summed over all binomial outcomes, so no sampling error: P(bound < true mean) <= delta."""
    m, true_mean, delta = 40, 0.15, 0.1
    failures = sum(
        stats.binom.pmf(k, m, true_mean)
        for k in range(m + 1)
        if bound(torch.tensor([1.0] * k + [0.0] * (m - k)), delta) < true_mean
    )
    assert failures <= delta


@pytest.mark.parametrize("costs", [[], [1.0], [1.0, float("nan")]])
def test_unusable_costs_are_refused(costs):
    with pytest.raises(ValueError, match="costs"):
        StudentT()(torch.tensor(costs), 0.1)


def test_range_and_delta_are_checked():
    with pytest.raises(ValueError, match="true range"):
        Hoeffding()(torch.tensor([0.5, 1.5]), 0.1)
    with pytest.raises(ValueError, match="delta"):
        Hoeffding()(torch.tensor([0.5]), 1.0)


def test_inflation_at_published_settings():
    # delta 0.1, m = 100, C1 = 4, C2 = 2: 1.18 at n = 32 and 0.58 at n = 256
    assert inflation(0.1, 32, 100, 4, 2) == pytest.approx(1.18, abs=5e-3)
    assert inflation(0.1, 256, 100, 4, 2) == pytest.approx(0.58, abs=5e-3)


def test_augmented_cost_has_the_gradient_of_mean_plus_kappa_deviation():
    theta = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    costs, kappa = torch.tensor([2.0, -1.0, 0.5, 0.0], dtype=torch.float64), 0.7
    probabilities = theta.softmax(0)
    mean = (probabilities * costs).sum()
    std = ((probabilities * costs**2).sum() - mean**2).sqrt()
    exact = torch.autograd.grad(mean + kappa * std, theta, retain_graph=True)[0]
    augmented = augmented_cost(costs, mean.item(), std.item(), kappa)
    score_function = torch.autograd.grad((probabilities.detach() * augmented * theta.log_softmax(0)).sum(), theta)[0]
    assert float((score_function - exact).norm() / exact.norm()) < 1e-6


def test_window_and_dual_by_hand_and_through_their_state():
    window = CostWindow(3)
    window.extend([9.0, 1.0, 2.0, 3.0])
    assert (len(window), window.mean, window.std) == (3, 2.0, 1.0)
    dual = DualVariable(initial=2.0, rate=0.1, delay=1)
    dual.step(0.5)
    assert dual.value == pytest.approx(2.0)
    dual.step(0.5)
    assert dual.value == pytest.approx(2.0 * math.exp(0.1 * 2.0 * 0.5))
    other, other_window = DualVariable(), CostWindow(3)
    other.load_state_dict(dual.state_dict())
    other_window.load_state_dict(window.state_dict())
    assert other.value == dual.value and other_window.std == window.std
