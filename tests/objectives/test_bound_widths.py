"""Widths of the bounds, and the pessimism of candidate selection that is made of them."""

import math

import pytest
import torch

from objectives import Betting, Bound, ClopperPearson, EmpiricalBernstein, Hoeffding, StudentT
from objectives.constraint import inflation, pessimistic_bound

BOUNDS: list[Bound] = [StudentT(), Hoeffding(), EmpiricalBernstein(), ClopperPearson(), Betting()]


def draw(kind: str, size: int, generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    rare = 0.077 + 0.01 * uniform + 0.6 * (torch.rand(size, generator=generator) < 0.01)
    normal = (0.4 + 0.1 * torch.randn(size, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return {"binary": (uniform < 0.1).double(), "rare": rare, "normal": normal}[kind]


@pytest.mark.parametrize("bound", BOUNDS[:4], ids=lambda bound: bound.name)
def test_the_width_is_the_distance_of_bound_and_mean(bound):
    costs = draw("binary", 60, torch.Generator().manual_seed(0))
    mean, std = float(costs.mean()), float(costs.std())
    for delta in (0.02, 0.1, 0.4):
        assert bound.width(mean, std, 60, delta) == pytest.approx(bound(costs, delta) - mean, abs=1e-12)


@pytest.mark.parametrize("kind", ["binary", "rare", "normal"])
@pytest.mark.parametrize("size", [100, 400])
def test_the_width_of_the_betting_bound_is_about_its_average_distance(kind, size):
    """A little above on the whole, since the worst shape with these moments is assumed."""
    generator = torch.Generator().manual_seed(1)
    samples = [draw(kind, size, generator) for _ in range(60)]
    actual = sum(Betting()(costs, 0.1) - float(costs.mean()) for costs in samples) / 60
    mean, std = (sum(values) / 60 for values in zip(*[(float(c.mean()), float(c.std())) for c in samples], strict=True))
    assert 0.9 * actual < Betting().width(mean, std, size, 0.1) < 1.35 * actual


@pytest.mark.parametrize("bound", [*BOUNDS, Betting(-2, 3)], ids=lambda bound: bound.name)
def test_widths_shrink_with_more_samples_and_with_larger_delta(bound):
    widths = [bound.width(0.2, 0.15, samples, 0.1) for samples in (10, 50, 200, 1000, 5000)]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.5 * widths[0]
    assert bound.width(0.2, 0.15, 100, 0.05) > bound.width(0.2, 0.15, 100, 0.2) > 0


@pytest.mark.parametrize(
    "bound", [StudentT(), Hoeffding(), EmpiricalBernstein(), Betting()], ids=lambda bound: bound.name
)
@pytest.mark.parametrize("std", [0.02, 0.1, 0.25])
def test_the_slope_is_the_derivative_of_the_width(bound, std):
    for samples in (50, 1000):
        secant = (bound.width(0.2, std + 1e-4, samples, 0.1) - bound.width(0.2, std - 1e-4, samples, 0.1)) / 2e-4
        assert bound.slope(0.2, std, samples, 0.1) == pytest.approx(secant, rel=1e-2, abs=1e-9)
        assert bound.slope(0.2, std, samples, 0.1) >= 0


def test_no_spread_at_all():
    assert StudentT().width(0.2, 0.0, 10, 0.1) == 0
    for bound in BOUNDS[1:]:
        assert math.isfinite(bound.slope(0.2, 0.0, 10, 0.1)) and bound.width(0.2, 0.0, 10, 0.1) > 0
    for edge in (0.0, 1.0):
        assert 0 <= Betting().width(edge, 0.0, 10, 0.1) <= 1 - edge
    # The Bessel-corrected deviation of two costs, 0 and 1, is larger than any on [0, 1].
    assert Betting().width(0.5, math.sqrt(0.5), 2, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize("bound", BOUNDS[1:], ids=lambda bound: bound.name)
def test_moments_outside_the_range_are_refused(bound):
    with pytest.raises(ValueError, match="mean is 1.5"):
        bound.width(1.5, 0.1, 10, 0.1)


def test_pessimism_with_student_t_is_the_papers():
    kappa = inflation(0.1, 256, 100, 4, 2)
    assert kappa == inflation(0.1, 256, 100, 4, 2, StudentT(), 0.3, 0.2)
    assert pessimistic_bound(0.1, 256, 100, 4, 2, StudentT(), 0.3, 0.2) == pytest.approx(0.3 + kappa * 0.2)
    with pytest.raises(ValueError, match="at least 2 samples"):
        pessimistic_bound(0.1, 1, 100, 1, 1, StudentT(), 0.3, 0.2)


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
@pytest.mark.parametrize("kind", ["binary", "rare", "normal"])
def test_a_candidate_that_meets_the_constraint_exactly_passes_every_bounds_own_test_about_half_the_time(bound, kind):
    """Without the first term and with C2 = 1; with another bound's width it would pass nearly always or never."""
    if bound.name == "ClopperPearson" and kind != "binary":
        return
    generator = torch.Generator().manual_seed(2)
    many = draw(kind, 200_000, generator)
    threshold = pessimistic_bound(0.05, 512, 300, 0, 1, bound, float(many.mean()), float(many.std()))
    passed = sum(bound(draw(kind, 300, generator), 0.05) <= threshold for _ in range(60))
    assert passed >= 20
    kappa = inflation(0.05, 512, 300, 0, 1, bound, float(many.mean()), float(many.std()))
    assert 0 <= kappa < 0.5
