"""Settings of the constraint and of the supervised term."""

import math
from dataclasses import dataclass
from typing import Literal

from support.errors import ConfigError


@dataclass
class Constraint:
    """The pessimistic constraint and its multiplier.

    Args:
        threshold: tau, the largest mean cost allowed.
        delta: failure probability of the safety test.
        cost_scale: scale of a cost model. raw uses its scores; probability their sigmoid, so that tau is an expected
            fraction of unsafe responses; unsafe 1 for a score above zero and 0 otherwise, so that tau is the fraction
            of responses that the model calls unsafe.
        c1: factor of pessimism about the cost's estimate from the window.
        c2: factor of pessimism about the safety test. With c1 and c2 both 0 the constraint is on the mean, as in
            safe-RLHF.
        window: number of most recent costs that mean and deviation are computed from.
        lambda_init: lambda at the start; 0 ignores the cost.
        lambda_lr: step size of lambda; 0 keeps a fixed penalty.
        lambda_max: upper bound of lambda.
        lambda_delay: number of rollouts before the first step of lambda.
        lambda_update: log takes a step on log lambda, whose gradient has a factor lambda (the official code); linear
            takes a projected step on lambda itself, which recovers faster from a small value.
        normalise_multiplier: divide the objective by 1 + lambda, which bounds its scale (as in safe-RLHF; HC-RLHF's
            code does not).
    """

    threshold: float = 0.0
    delta: float = 0.1
    cost_scale: Literal["raw", "probability", "unsafe"] = "raw"
    c1: float = 1.0
    c2: float = 1.0
    window: int = 256
    lambda_init: float = 1.0
    lambda_lr: float = 0.01
    lambda_max: float = 1e6
    lambda_delay: int = 0
    lambda_update: Literal["log", "linear"] = "log"
    normalise_multiplier: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ConfigError(f"constraint.delta is {self.delta}; set it to a probability strictly between 0 and 1.")
        if not math.isfinite(self.threshold):
            raise ConfigError(f"constraint.threshold is {self.threshold}; set it to a finite cost.")
        if self.cost_scale != "raw" and not 0 < self.threshold < 1:
            raise ConfigError(
                f"constraint.threshold is {self.threshold}, but with cost_scale: {self.cost_scale} costs lie between 0 "
                "and 1; set it strictly between 0 and 1."
            )
        if self.c1 < 0 or self.c2 < 0 or self.window < 2:
            raise ConfigError(
                f"constraint needs c1 >= 0, c2 >= 0 and window >= 2, got {self.c1}, {self.c2} and {self.window}."
            )


@dataclass
class SupervisedTerm:
    """A supervised loss in addition to the policy's (the official code's "ptx" term), on the data's demonstrations.

    Args:
        coefficient: weight of the loss; 8 in the official code.
        batch_size: demonstrations per optimiser step.
        max_length: maximum length of prompt and response together, in tokens.
    """

    coefficient: float = 8.0
    batch_size: int = 16
    max_length: int = 1024

    def __post_init__(self) -> None:
        if self.coefficient < 0 or self.batch_size < 1 or self.max_length < 2:
            raise ConfigError(
                "model.supervised needs coefficient >= 0, batch_size >= 1 and max_length >= 2, got "
                f"{self.coefficient}, {self.batch_size} and {self.max_length}."
            )
