"""Upper confidence bounds on a mean, as small objects that state their assumption.

For given costs, a bound returns a number below which the true mean lies with probability at least 1 - delta.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from support.errors import ConfigError


class Bound(ABC):
    """Upper confidence bound on the mean of independent costs."""

    #: condition on the costs under which the bound holds; printed on every certificate
    assumption: str

    @abstractmethod
    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        """The upper bound at confidence 1 - delta. Raises ValueError for unusable costs or delta."""

    def check(self, low: float, high: float, two_points: bool) -> None:
        """Refuse costs of this range before anything is sampled. Raises ConfigError.

        Args:
            low, high: smallest and largest cost that can occur.
            two_points: whether costs take only these two values.
        """

    @abstractmethod
    def width(self, mean: float, std: float, samples: int, delta: float) -> float:
        """Distance of the bound from the mean for `samples` costs with this mean and Bessel-corrected deviation.

        Candidate selection uses it to anticipate the safety test. Raises ValueError for moments that cannot occur.
        """

    def slope(self, mean: float, std: float, samples: int, delta: float) -> float:
        """Derivative of the width with respect to the deviation, at a fixed mean; candidate selection's kappa."""
        step = 1e-3 * std
        if step == 0.0:
            return 0.0
        ends = [self.width(mean, std + sign * step, samples, delta) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * step)

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass
class RangedBound(Bound):
    """A bound that needs a stated range.

    Args:
        low: smallest cost that can occur.
        high: largest cost that can occur.
    """

    low: float = 0.0
    high: float = 1.0

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ConfigError(
                f"{self.name}: low must be below high and both finite, got [{self.low}, {self.high}]; state the "
                "smallest and the largest cost that can occur."
            )
        # Printed exactly, because bounds with different settings must not have the same assumption.
        low, high = (f"{end:g}" if float(f"{end:g}") == end else repr(end) for end in (self.low, self.high))
        self.assumption = f"every cost lies in [{low}, {high}] ({self.kind}); exact for any distribution on it"

    def check(self, low: float, high: float, two_points: bool) -> None:
        if low < self.low or high > self.high:
            raise ConfigError(
                f"the bound {self.name} holds for costs in [{self.low:g}, {self.high:g}], but costs can lie in "
                f"[{low:g}, {high:g}]; set constraint.cost_scale: probability, the range in model.bound.init_args, or "
                "another model.bound."
            )

    def check_moments(self, mean: float, std: float) -> None:
        """Refuse moments that costs in the range cannot have. Raises ValueError."""
        if not (self.low <= mean <= self.high and 0 <= std < math.inf):
            raise ValueError(
                f"{self.name} is configured for costs in [{self.low:g}, {self.high:g}], but their mean is {mean:g} and "
                f"their deviation {std:g}; set the true range in model.bound.init_args, or use a bounded cost."
            )


def check_delta(delta: float) -> None:
    """Refuse a delta that is not an error probability. Raises ValueError."""
    if not 0 < delta < 1:
        raise ValueError(
            f"delta is {delta}, but it is the probability that the bound fails; set it strictly between 0 and 1."
        )


def checked_costs(costs: Float[Tensor, "samples"], delta: float, minimum: int) -> Float[Tensor, "samples"]:
    """The costs in double precision.

    Raises ValueError for delta outside (0, 1), fewer than `minimum` costs, and costs that are not finite.
    """
    check_delta(delta)
    costs = torch.as_tensor(costs).detach().double().flatten()
    if costs.numel() < minimum:
        raise ValueError(f"a confidence bound needs at least {minimum} costs, got {costs.numel()}.")
    wrong = (~torch.isfinite(costs)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {costs.numel()} costs are NaN or infinite, the first at position {wrong[0]}; a bound on "
            "the mean needs every cost. Use a cost that cannot fail, or sample these responses again."
        )
    return costs


def costs_in_range(costs: Float[Tensor, "samples"], low: float, high: float, name: str) -> Float[Tensor, "samples"]:
    """The costs. Raises ValueError if one of them lies outside [low, high]."""
    wrong = ((costs < low) | (costs > high)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{name} is configured for costs in [{low:g}, {high:g}], but {len(wrong)} of {costs.numel()} are outside, "
            f"the first at position {wrong[0]}: {float(costs[wrong[0]]):.6g}; set the true range in "
            "model.bound.init_args, or use a bounded cost."
        )
    return costs


def student_t_quantile(delta: float, samples: int) -> float:
    """t_{1-delta, samples-1}: the quantile that both the constraint and the test use."""
    return float(stats.t.ppf(1 - delta, samples - 1))


@dataclass
class StudentT(Bound):
    """mean + t_{1-delta, m-1} * std / sqrt(m), std Bessel-corrected: the paper's test (HC-RLHF, arXiv 2506.08266)."""

    assumption = (
        "the mean of the costs is normally distributed (Student's t); not exact for skewed costs and few samples"
    )

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = checked_costs(costs, delta, 2)
        # Deviations from one of the costs: equal costs have a deviation of exactly zero.
        deviation = float((costs - costs[0]).std())
        return float(costs.mean()) + student_t_quantile(delta, costs.numel()) * deviation / math.sqrt(costs.numel())

    def width(self, mean: float, std: float, samples: int, delta: float) -> float:
        return self.slope(mean, std, samples, delta) * std

    def slope(self, mean: float, std: float, samples: int, delta: float) -> float:
        """t_{1-delta, samples-1} / sqrt(samples)."""
        return student_t_quantile(delta, samples) / math.sqrt(samples)


@dataclass
class Hoeffding(RangedBound):
    """mean + (high - low) * sqrt(ln(1/delta) / (2m)) (Hoeffding 1963, theorem 2)."""

    kind = "Hoeffding"

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = costs_in_range(checked_costs(costs, delta, 1), self.low, self.high, self.name)
        return float(costs.mean()) + self._width(costs.numel(), delta)

    def _width(self, samples: int, delta: float) -> float:
        return (self.high - self.low) * math.sqrt(math.log(1 / delta) / (2 * samples))

    def width(self, mean: float, std: float, samples: int, delta: float) -> float:
        self.check_moments(mean, std)
        return self._width(samples, delta)


@dataclass
class EmpiricalBernstein(RangedBound):
    """mean + sqrt(2 var ln(2/delta) / m) + 7 (high - low) ln(2/delta) / (3 (m - 1)).

    Source: Maurer & Pontil 2009, theorem 4.
    """

    kind = "empirical Bernstein"

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = costs_in_range(checked_costs(costs, delta, 2), self.low, self.high, self.name)
        return float(costs.mean()) + self._width(float(costs.std()), costs.numel(), delta)

    def _width(self, std: float, samples: int, delta: float) -> float:
        log_term = math.log(2 / delta)
        return std * math.sqrt(2 * log_term / samples) + 7 * (self.high - self.low) * log_term / (3 * (samples - 1))

    def width(self, mean: float, std: float, samples: int, delta: float) -> float:
        self.check_moments(mean, std)
        return self._width(std, samples, delta)


@dataclass
class ClopperPearson(Bound):
    """The exact binomial bound for costs that are 0 or 1: the (1 - delta) quantile of Beta(k + 1, m - k).

    Source: Clopper & Pearson 1934.
    """

    assumption = "every cost is 0 or 1 (Clopper-Pearson); exact"

    def check(self, low: float, high: float, two_points: bool) -> None:
        if not two_points or (low, high) != (0.0, 1.0):
            raise ConfigError(
                "the bound ClopperPearson needs costs that are 0 or 1; set constraint.cost_scale: unsafe, or another "
                "model.bound."
            )

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = checked_costs(costs, delta, 1)
        if not bool(((costs == 0) | (costs == 1)).all()):
            raise ValueError("ClopperPearson needs costs that are exactly 0 or 1; use another bound, or a 0/1 cost.")
        return self._upper(int(costs.sum()), costs.numel(), delta)

    @staticmethod
    def _upper(ones: float, samples: int, delta: float) -> float:
        return 1.0 if ones == samples else float(stats.beta.ppf(1 - delta, ones + 1, samples - ones))

    def width(self, mean: float, std: float, samples: int, delta: float) -> float:
        if not 0 <= mean <= 1:
            raise ValueError(
                f"ClopperPearson needs costs that are exactly 0 or 1, but their mean is {mean:g}; use another bound, "
                "or a 0/1 cost."
            )
        return self._upper(mean * samples, samples, delta) - mean

    def slope(self, mean: float, std: float, samples: int, delta: float) -> float:
        """z_{1-delta} / sqrt(samples), from the normal limit: mean and deviation of 0/1 costs cannot vary alone."""
        return float(stats.norm.ppf(1 - delta)) / math.sqrt(samples)
