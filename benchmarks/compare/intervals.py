"""Means and confidence intervals over seeds, differences of methods, and the Pareto front of a trade-off."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t as student


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
