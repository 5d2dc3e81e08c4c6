"""Differences of all methods from one of them, seed by seed, with a correction for their number."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.compare.intervals import Interval, difference, holm, p_value
from benchmarks.compare.trials import Result


class Gap(NamedTuple):
    """A method's difference from the baseline.

    Fields:
        interval: mean of the paired differences with Student's 95 % interval.
        p: two-sided p-value of the paired t-test; NaN for fewer than two seeds.
        adjusted: the same, adjusted by Holm's method for the number of methods.
    """

    interval: Interval
    p: float
    adjusted: float

    @property
    def clear(self) -> bool:
        """Whether the difference is significant at 5 % after the adjustment."""
        return self.adjusted <= 0.05


def by_seed(results: Sequence[Result], value: Callable[[Result], float]) -> dict[int, float]:
    """Seed -> value, without values that were not measured."""
    return {result.seed: value(result) for result in results if not math.isnan(value(result))}


def gaps(
    results_by_method: Mapping[str, Sequence[Result]], value: Callable[[Result], float], baseline: str
) -> dict[str, Gap]:
    """The gap of every method that shares a seed with the baseline; empty without the baseline."""
    values = {name: by_seed(results, value) for name, results in results_by_method.items()}
    theirs = values.get(baseline, {})
    others = [name for name in values if name != baseline]
    p_values = {name: p_value(values[name], theirs) for name in others}
    adjusted = holm(p_values)
    intervals = {name: difference(values[name], theirs) for name in others}
    return {
        name: Gap(between, p_values[name], adjusted[name]) for name, between in intervals.items() if between is not None
    }
