"""What a person decides about the constraint and the supervised term."""

import math
from dataclasses import dataclass
from typing import Literal

from support.errors import ConfigError


@dataclass
class Constraint:
    """The pessimistic constraint and its multiplier.

    Args:
        threshold: tau, the largest mean cost allowed. delta: the failure probability of the promise.
        cost_scale: of a cost model. raw: its scores; probability: their sigmoid, so that tau is an expected share of unsafe responses; unsafe: 1
            for a score above zero and 0 otherwise, so that tau is the share of responses that the model calls unsafe.
        c1: pessimism about the cost's estimate from the window. c2: about the coming safety test. With both 0 the constraint is on the mean, which
            is safe-RLHF's.
        window: most recent costs that mean and deviation are taken from.
        lambda_init, lambda_lr, lambda_max, lambda_delay: start, step, cap, rollouts before the first step. A step of 0 keeps a fixed penalty, a
            start of 0 leaves the cost out.
        lambda_update: log: a step on log lambda, whose gradient carries a factor lambda (the official code's); linear: a projected step on
            lambda itself, which comes back faster from a small value.
        normalise_multiplier: divide the objective by 1 + lambda, which bounds its scale (safe-RLHF does, HC-RLHF's code does not).
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
            raise ConfigError(f"constraint.delta is {self.delta}; it is a probability strictly between 0 and 1.")
        if not math.isfinite(self.threshold):
            raise ConfigError(f"constraint.threshold is {self.threshold}; it is a finite cost.")
        if self.cost_scale != "raw" and not 0 < self.threshold < 1:
            raise ConfigError(
                f"constraint.threshold is {self.threshold}; with cost_scale: {self.cost_scale} it must lie strictly between 0 and 1."
            )
        if self.c1 < 0 or self.c2 < 0 or self.window < 2:
            raise ConfigError(
                f"constraint needs c1 >= 0, c2 >= 0 and window >= 2, got {self.c1}, {self.c2} and {self.window}."
            )


@dataclass
class SupervisedTerm:
    """A supervised loss beside the policy's (the official code's "ptx" term), on the data module's demonstrations.

    Args:
        coefficient: its weight; 8 in the official code. batch_size: demonstrations an optimiser step.
        max_length: longest prompt with response, in tokens.
    """

    coefficient: float = 8.0
    batch_size: int = 16
    max_length: int = 1024

    def __post_init__(self) -> None:
        if self.coefficient < 0 or self.batch_size < 1 or self.max_length < 2:
            raise ConfigError(
                f"supervised needs coefficient >= 0, batch_size >= 1 and max_length >= 2, got {self.coefficient}, {self.batch_size} and {self.max_length}."
            )
