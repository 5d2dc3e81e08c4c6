"""Estimators of KL(policy || reference) from tokens that the policy sampled (Schulman 2020, "Approximating KL divergence").

With d = log pi - log pi_ref: k1 = d (unbiased, signed), k2 = d^2/2 (biased, its gradient is the KL's), k3 = exp(-d) + d - 1
(unbiased, never negative; GRPO's choice). As a loss on on-policy samples k1 has zero expected gradient: never use it so.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"], estimator: Estimator
) -> Float[Tensor, "*shape"]:
    """The estimate at each token, in nats."""
    d = logprobs - reference_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d**2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"KL estimator must be k1, k2 or k3, got {estimator!r}.")


def adapted_coefficient(coefficient: float, observed: float, target: float, rows: int, horizon: int, limit: float = 0.2) -> float:
    """The adaptive controller of Ziegler et al. (arXiv 1909.08593, 2.2): beta * (1 + clip(KL/target - 1, +-limit) * rows/horizon), never below 0."""
    error = min(max(observed / target - 1.0, -limit), limit)
    return coefficient * max(0.0, 1.0 + error * rows / horizon)
