"""Estimators of KL(policy || reference) from tokens that the policy sampled.

Source: Schulman 2020, "Approximating KL divergence". With d = log pi - log pi_ref: k1 = d (unbiased, signed),
k2 = d^2/2 (biased, but its gradient is the KL's), k3 = exp(-d) + d - 1 (unbiased, never negative; GRPO's choice). As a
loss on on-policy samples k1 has zero expected gradient, so it must not be used there. k1+ and k3+ (verl) have the value
of k1 or k3 and the gradient of k2.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "k1+", "k3+"]


def kl_estimate(
    logprobs: Float[Tensor, "*shape"],
    reference_logprobs: Float[Tensor, "*shape"],
    estimator: Estimator,
    difference_clamp: float | None = None,
    value_clamp: float | None = None,
) -> Float[Tensor, "*shape"]:
    """The estimate at each token, in nats.

    Args:
        difference_clamp: d is clamped to plus and minus this value (verl's k3: 20).
        value_clamp: the estimate is clamped to plus and minus this value (verl's k3: 10).
    """
    difference = logprobs - reference_logprobs
    d = difference if difference_clamp is None else difference.clamp(-difference_clamp, difference_clamp)
    value = _value(d, estimator.removesuffix("+"))
    if value_clamp is not None:
        value = value.clamp(-value_clamp, value_clamp)
    if not estimator.endswith("+"):
        return value
    slope = 0.5 * difference**2
    return value.detach() + slope - slope.detach()


def _value(d: Tensor, estimator: str) -> Tensor:
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d**2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"KL estimator must be k1, k2, k3, k1+ or k3+, got {estimator!r}.")


def adapted_coefficient(
    coefficient: float, observed: float, target: float, rows: int, horizon: int, limit: float = 0.2
) -> float:
    """beta * (1 + clip(KL/target - 1, +-limit) * rows/horizon), never below 0.

    The adaptive controller of Ziegler et al. (arXiv 1909.08593, 2.2).
    """
    error = min(max(observed / target - 1.0, -limit), limit)
    return coefficient * max(0.0, 1.0 + error * rows / horizon)


def scheduled_coefficient(start: float, end: float, progress: float, shape: Literal["linear", "cosine"]) -> float:
    """beta between start (progress 0) and end (progress 1 and later), along a line or half a cosine."""
    fraction = min(max(progress, 0.0), 1.0)
    if shape == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    return start + (end - start) * fraction
