"""Means and intervals over seeds, differences of methods, the front of a trade-off."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t as student


class Interval(NamedTuple):
    """A mean over seeds and the half width of Student's 95 % interval, NaN for fewer than two seeds."""

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
        """Whether the interval lies on one side of zero; False where there is none."""
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float]) -> Interval | None:
    """Of one number a seed; None without numbers."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    half = (
        float(student.ppf(0.975, len(known) - 1)) * stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    )
    return Interval(mean(known), half, len(known))


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Of two methods, by the seeds that both have: prompts and draws of a seed are the same, so what they share cancels."""
    return interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def clear_best(methods: Mapping[str, Mapping[int, float]], larger: bool = True) -> str | None:
    """The method whose mean is best, if the interval of its difference from every other lies on its side of zero; else None.

    Args:
        methods: name -> seed -> value. larger: whether larger is better.
    """
    means = {name: mean(values.values()) for name, values in methods.items() if values}
    if len(means) < 2:
        return None
    best = max(means, key=lambda name: means[name] if larger else -means[name])
    apart = [difference(methods[best], methods[name]) for name in means if name != best]
    return best if all(found is not None and found.excludes_zero for found in apart) else None


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points (cost, value) that no other beats in one and equals or beats in the other, cheapest first."""
    ordered = sorted(points, key=lambda name: (points[name][0], -points[name][1]))
    kept: list[str] = []
    for name in ordered:
        if not kept or points[name][1] > points[kept[-1]][1]:
            kept.append(name)
    return kept
