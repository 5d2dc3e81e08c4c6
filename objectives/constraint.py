"""The pessimistic constraint of HC-RLHF (arXiv 2506.08266): inflation, augmented cost, dual variable."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from objectives.bounds import Bound, StudentT
from support.errors import ConfigError


def inflation(
    delta: float,
    samples: int,
    safety_samples: int,
    c1: float,
    c2: float,
    bound: Bound | None = None,
    mean: float = 0.0,
    std: float = 0.0,
) -> float:
    """kappa = C1 * slope_n + C2 * slope_m, the derivative of `pessimistic_bound` by the deviation.

    With Student's t, the default and the paper's,
        kappa = C1 * t_{1-delta, n-1} / sqrt(n) + C2 * t_{1-delta, m-1} / sqrt(m).
    Arguments and errors as in `pessimistic_bound`.
    """
    _check_sizes(samples, safety_samples)
    bound = bound or StudentT()
    candidate = c1 * bound.slope(mean, std, samples, delta)
    test = c2 * bound.slope(mean, std, safety_samples, delta)
    return candidate + test


def pessimistic_bound(
    delta: float, samples: int, safety_samples: int, c1: float, c2: float, bound: Bound, mean: float, std: float
) -> float:
    """U+ = mean + C1 * width_n + C2 * width_m, with the widths of the safety test's bound.

    With Student's t it is mean + kappa * std. The first width covers estimating the cost from `samples` = n rollouts,
    the second anticipates the safety test on `safety_samples` = m prompts.

    Args:
        delta: error probability of the safety test itself, after its division among several tests.
        samples: number n of costs that mean and std come from.
        safety_samples: number m of prompts in the safety test.
        c1: factor of pessimism on the first width.
        c2: factor of pessimism on the second width.
        bound: bound of the safety test.
        mean: mean of the n costs.
        std: Bessel-corrected deviation of the n costs.

    Raises:
        ValueError: fewer than 2 samples on either side, or moments that the bound's range excludes.
    """
    _check_sizes(samples, safety_samples)
    return mean + c1 * bound.width(mean, std, samples, delta) + c2 * bound.width(mean, std, safety_samples, delta)


def _check_sizes(samples: int, safety_samples: int) -> None:
    if samples < 2 or safety_samples < 2:
        raise ValueError(f"inflation needs at least 2 samples on both sides, got n={samples}, m={safety_samples}.")


def augmented_cost(
    costs: Float[Tensor, "rows"], mean: float, std: float, kappa: float, floor: float = 1e-6
) -> Float[Tensor, "rows"]:
    """The per-sample cost whose expected score-function gradient is that of mean + kappa * std.

    c + kappa * (c^2 - 2 c mean) / (2 std), because grad std = (grad E[c^2] - 2 mean grad E[c]) / (2 std).
    Below `floor` the deviation has no usable gradient, and the plain cost is returned.
    """
    if std < floor:
        return costs.clone()
    return costs + kappa * (costs**2 - 2 * costs * mean) / (2 * std)


class CostWindow:
    """The most recent costs; the formulas use their mean, deviation and number n."""

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ConfigError(f"the cost window holds {size} costs; set constraint.window to 2 or more.")
        self.costs: deque[float] = deque(maxlen=size)

    def extend(self, costs: Iterable[float]) -> None:
        self.costs.extend(costs)

    def __len__(self) -> int:
        return len(self.costs)

    @property
    def mean(self) -> float:
        return math.fsum(self.costs) / len(self.costs)

    @property
    def std(self) -> float:
        """Bessel-corrected; 0 for fewer than two costs."""
        if len(self.costs) < 2:
            return 0.0
        mean = self.mean
        return math.sqrt(math.fsum((c - mean) ** 2 for c in self.costs) / (len(self.costs) - 1))

    def state_dict(self) -> dict[str, Tensor]:
        return {"costs": torch.tensor(list(self.costs), dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.costs.clear()
        self.costs.extend(state["costs"].tolist())


class DualVariable:
    """The Lagrange multiplier, ascending lambda * (U - tau).

    log: log lambda <- min(log max, log lambda + rate * lambda * (U - tau)); the factor lambda is the chain rule's.
    linear: lambda <- min(max, max(0, lambda + rate * (U - tau))).

    Args:
        initial: lambda before the first step; 0 ignores the constraint (under log, lambda then stays 0).
        rate: step size; 0 keeps lambda fixed.
        maximum: cap on lambda.
        delay: number of rollouts before the first step.
        update: form of the step, log or linear.
    """

    def __init__(
        self,
        initial: float = 1.0,
        rate: float = 0.01,
        maximum: float = 1e6,
        delay: int = 0,
        update: Literal["log", "linear"] = "log",
    ) -> None:
        if initial < 0 or maximum < initial or rate < 0 or delay < 0:
            raise ConfigError(
                "model.constraint needs 0 <= lambda_init <= lambda_max, lambda_lr >= 0 and lambda_delay >= 0, got "
                f"{initial}, {maximum}, {rate} and {delay}."
            )
        self.value, self.rate, self.maximum, self.delay, self.update, self.steps = (
            initial,
            rate,
            maximum,
            delay,
            update,
            0,
        )

    def step(self, violation: float) -> None:
        """One ascent step for violation = U - tau."""
        self.steps += 1
        if self.steps <= self.delay:
            return
        if self.update == "linear":
            self.value = min(self.maximum, max(0.0, self.value + self.rate * violation))
        elif self.value > 0:
            # Capped before exp(), which could overflow; assigning the maximum itself keeps it exact.
            log_value = math.log(self.value) + self.rate * self.value * violation
            self.value = self.maximum if log_value >= math.log(self.maximum) else math.exp(log_value)

    def state_dict(self) -> dict[str, float | int]:
        return {"value": self.value, "steps": self.steps}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.value, self.steps = float(state["value"]), int(state["steps"])
