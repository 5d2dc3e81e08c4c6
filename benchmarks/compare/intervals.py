"""Means and confidence intervals over seeds, differences of methods, and the Pareto front of a trade-off."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t as student
from scipy.stats import ttest_1samp


class Interval(NamedTuple):
    """A mean over seeds, and the half-width of Student's 95 % interval, which is NaN for fewer than two seeds."""

    mean: float
    half: float
    seeds: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False without an interval."""
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float]) -> Interval | None:
    """The interval of one value per seed; NaN values are ignored, and without values the result is None."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    half = math.nan
    if len(known) > 1:
        half = float(student.ppf(0.975, len(known) - 1)) * stdev(known) / math.sqrt(len(known))
    return Interval(mean(known), half, len(known))


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The interval of the difference of two methods, over the seeds that both have.

    Prompts and random draws of a seed are the same for both, so their common effect cancels.

    Args:
        ours, theirs: seed -> value.
    """
    return interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def p_value(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    """Two-sided p-value of the paired t-test over the seeds that both methods have; NaN for fewer than two."""
    gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(gaps) < 2:
        return math.nan
    if min(gaps) == max(gaps):  # no spread, for which the statistic has no value
        return 1.0 if gaps[0] == 0 else 0.0
    return float(ttest_1samp(gaps, 0.0).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values for their number (Holm 1979): p_(i) becomes the maximum over j <= i of (m - j + 1) p_(j).

    Rejecting where the result is at most alpha makes any false rejection among all m at most alpha likely, whatever
    the tests' dependence. NaN values do not count and stay NaN.
    """
    ordered = sorted((value, name) for name, value in p_values.items() if not math.isnan(value))
    adjusted, largest = dict(p_values), 0.0
    for place, (value, name) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * value))
        adjusted[name] = largest
    return adjusted


def clear_best(methods: Mapping[str, Mapping[int, float]], larger: bool = True) -> str | None:
    """The method with the best mean, if the interval of its difference from every other excludes zero; else None.

    Args:
        methods: name -> seed -> value.
        larger: whether larger is better.
    """
    means = {name: mean(values.values()) for name, values in methods.items() if values}
    if len(means) < 2:
        return None
    best = max(means, key=lambda name: means[name] if larger else -means[name])
    differences = [difference(methods[best], methods[name]) for name in means if name != best]
    return best if all(gap is not None and gap.excludes_zero for gap in differences) else None


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (cost, value) on the Pareto front, cheapest first.

    These are the points that no other beats in one coordinate and equals or beats in the other.
    """
    ordered = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    front_names: list[str] = []
    for name in ordered:
        if not front_names or points[name][1] > points[front_names[-1]][1]:
            front_names.append(name)
    return front_names
