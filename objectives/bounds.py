"""Upper confidence bounds on a mean, as small objects that know what they assume.

A bound answers: below which number does the true mean lie with probability at least 1 - delta, given these costs?
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from support.errors import ConfigError


class Bound(ABC):
    """Upper confidence bound on the mean of independent costs."""

    #: what has to be true of the costs for the bound to hold; printed on every certificate
    assumption: str

    @abstractmethod
    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        """The upper bound at confidence 1 - delta. Raises ValueError for unusable costs or delta."""

    def check(self, low: float, high: float, two_points: bool) -> None:
        """Refuse costs of this range before anything is sampled. Raises ConfigError.

        Args:
            low, high: smallest and largest cost that can occur. two_points: whether nothing lies between them.
        """

    @property
    def name(self) -> str:
        return type(self).__name__


class _Ranged(Bound):
    """A bound that needs a stated range.

    Args:
        low: smallest cost that can occur.
        high: largest cost that can occur.
    """

    kind: str

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not low < high:
            raise ConfigError(f"{type(self).__name__}: low must be below high, got [{low}, {high}].")
        self.low, self.high = low, high
        self.assumption = f"every cost lies in [{low:g}, {high:g}] ({self.kind}); exact for any distribution on it"

    def check(self, low: float, high: float, two_points: bool) -> None:
        if low < self.low or high > self.high:
            raise ConfigError(
                f"the bound {self.name} holds for costs in [{self.low:g}, {self.high:g}], but costs can lie in [{low:g}, {high:g}]; choose "
                "constraint.cost_scale: probability, state the range in model.bound.init_args, or choose another bound."
            )


def _checked(costs: Tensor, delta: float, minimum: int) -> Tensor:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta}.")
    costs = costs.detach().double().flatten()
    if costs.numel() < minimum:
        raise ValueError(f"a confidence bound needs at least {minimum} costs, got {costs.numel()}.")
    if not torch.isfinite(costs).all():
        raise ValueError(f"{int((~torch.isfinite(costs)).sum())} of {costs.numel()} costs are NaN or infinite.")
    return costs


def _in_range(costs: Tensor, low: float, high: float, name: str) -> Tensor:
    if bool((costs < low).any() | (costs > high).any()):
        raise ValueError(
            f"{name} was told that costs lie in [{low}, {high}] but saw [{float(costs.min()):.4g}, {float(costs.max()):.4g}]; "
            "state the true range, or choose a bounded cost."
        )
    return costs


def student_t_quantile(delta: float, samples: int) -> float:
    """t_{1-delta, samples-1}: the quantile that both the constraint and the test use."""
    return float(stats.t.ppf(1 - delta, samples - 1))


class StudentT(Bound):
    """mean + t_{1-delta, m-1} * std / sqrt(m), std Bessel-corrected: the paper's test (HC-RLHF, arXiv 2506.08266)."""

    assumption = "the mean of the costs is normally distributed (Student's t); not exact for skewed costs and few samples"

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = _checked(costs, delta, 2)
        # Deviations from one of the costs: equal costs have a deviation of exactly zero.
        deviation = float((costs - costs[0]).std())
        return float(costs.mean()) + student_t_quantile(delta, costs.numel()) * deviation / math.sqrt(costs.numel())


class Hoeffding(_Ranged):
    """mean + (high - low) * sqrt(ln(1/delta) / (2m)) (Hoeffding 1963, theorem 2)."""

    kind = "Hoeffding"

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = _in_range(_checked(costs, delta, 1), self.low, self.high, self.name)
        return float(costs.mean()) + (self.high - self.low) * math.sqrt(math.log(1 / delta) / (2 * costs.numel()))


class EmpiricalBernstein(_Ranged):
    """mean + sqrt(2 var ln(2/delta) / m) + 7 (high - low) ln(2/delta) / (3 (m - 1)) (Maurer & Pontil 2009, theorem 4)."""

    kind = "empirical Bernstein"

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = _in_range(_checked(costs, delta, 2), self.low, self.high, self.name)
        m, log_term = costs.numel(), math.log(2 / delta)
        spread = math.sqrt(2 * float(costs.var()) * log_term / m)
        return float(costs.mean()) + spread + 7 * (self.high - self.low) * log_term / (3 * (m - 1))


class ClopperPearson(Bound):
    """The exact binomial bound for costs that are 0 or 1: the (1 - delta) quantile of Beta(k + 1, m - k) (Clopper & Pearson 1934)."""

    assumption = "every cost is 0 or 1 (Clopper-Pearson); exact"

    def check(self, low: float, high: float, two_points: bool) -> None:
        if not two_points or (low, high) != (0.0, 1.0):
            raise ConfigError(
                "the bound ClopperPearson is for costs that are 0 or 1; choose constraint.cost_scale: unsafe, or another bound."
            )

    def __call__(self, costs: Float[Tensor, "samples"], delta: float) -> float:
        costs = _checked(costs, delta, 1)
        if not bool(((costs == 0) | (costs == 1)).all()):
            raise ValueError("ClopperPearson needs costs that are exactly 0 or 1; use another bound, or a 0/1 cost.")
        k, m = int(costs.sum()), costs.numel()
        return 1.0 if k == m else float(stats.beta.ppf(1 - delta, k + 1, m - k))
