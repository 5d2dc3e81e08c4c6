"""The pessimistic constraint of HC-RLHF (arXiv 2506.08266): inflation, augmented cost, dual variable."""

import math
from collections import deque
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from objectives.bounds import student_t_quantile
from support.errors import ConfigError


def inflation(delta: float, samples: int, safety_samples: int, c1: float, c2: float) -> float:
    """kappa = C1 * t_{1-delta, n-1} / sqrt(n) + C2 * t_{1-delta, m-1} / sqrt(m).

    The first term covers estimating the cost from `samples` = n rollouts, the second anticipates the safety test on
    `safety_samples` = m prompts.
    """
    if samples < 2 or safety_samples < 2:
        raise ValueError(f"inflation needs at least 2 samples on both sides, got n={samples}, m={safety_samples}.")
    candidate = c1 * student_t_quantile(delta, samples) / math.sqrt(samples)
    test = c2 * student_t_quantile(delta, safety_samples) / math.sqrt(safety_samples)
    return candidate + test


def augmented_cost(costs: Float[Tensor, "rows"], mean: float, std: float, kappa: float, floor: float = 1e-6) -> Float[Tensor, "rows"]:
    """The per-sample cost whose expected score-function gradient is that of mean + kappa * std.

    c + kappa * (c^2 - 2 c mean) / (2 std), because grad std = (grad E[c^2] - 2 mean grad E[c]) / (2 std).
    Below `floor` the deviation carries no usable direction and the plain cost is returned.
    """
    if std < floor:
        return costs.clone()
    return costs + kappa * (costs**2 - 2 * costs * mean) / (2 * std)


class CostWindow:
    """The most recent costs, from which mean, deviation and the one sample count n of every formula come."""

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ConfigError(f"the cost window must hold at least 2 costs, got {size}.")
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
    """The Lagrange multiplier, ascending lambda * (U - tau) in log space.

    log lambda <- min(log max, log lambda + rate * lambda * (U - tau)); the factor lambda is the chain rule's.

    Args:
        initial: lambda before the first step.
        rate: step size on log lambda.
        maximum: cap on lambda.
        delay: number of rollouts before the first step.
    """

    def __init__(self, initial: float = 1.0, rate: float = 0.01, maximum: float = 1e6, delay: int = 0) -> None:
        if initial <= 0 or maximum < initial or rate < 0 or delay < 0:
            raise ConfigError(
                "DualVariable: needs 0 < initial <= maximum, rate >= 0 and delay >= 0, "
                f"got initial={initial}, maximum={maximum}, rate={rate}, delay={delay}."
            )
        self.log_value = math.log(initial)
        self.rate, self.maximum, self.delay, self.steps = rate, maximum, delay, 0

    @property
    def value(self) -> float:
        return math.exp(self.log_value)

    def step(self, violation: float) -> None:
        """One ascent step for violation = U - tau."""
        self.steps += 1
        if self.steps > self.delay:
            self.log_value = min(math.log(self.maximum), self.log_value + self.rate * self.value * violation)

    def state_dict(self) -> dict[str, float | int]:
        return {"log_value": self.log_value, "steps": self.steps}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.log_value, self.steps = float(state["log_value"]), int(state["steps"])
