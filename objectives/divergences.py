"""Divergences between a student's and a teacher's next-token distributions, and teachers as mixtures of logits.

With p_S of the student, p_T of the teacher and M = beta p_T + (1 - beta) p_S, per token:

    reverse         KL(p_S || p_T) = sum_v p_S (log p_S - log p_T)
    forward         KL(p_T || p_S) = sum_v p_T (log p_T - log p_S)
    jensen_shannon  beta KL(p_T || M) + (1 - beta) KL(p_S || M)                     (GKD, arXiv 2306.13649)

A mixture's teacher is p_T = softmax(lambda h_aligned + (1 - lambda) h_reference)        (TrRa, arXiv 2506.12704).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from support.errors import ConfigError

Logits = Float[Tensor, "tokens vocabulary"]


def mixed_logits(aligned: Logits, reference: Logits, weight: float) -> Logits:
    """weight * aligned + (1 - weight) * reference; above 1 or below 0 it extrapolates."""
    return weight * aligned + (1 - weight) * reference


@dataclass
class Divergence:
    """A divergence of the student from the teacher.

    Args:
        kind: reverse, forward or jensen_shannon.
        beta: weight of the teacher in the mixture of jensen_shannon, above 0 and below 1.
    """

    kind: Literal["reverse", "forward", "jensen_shannon"] = "reverse"
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ConfigError(
                f"Divergence: beta is {self.beta}; set model.divergence.beta above 0 and below 1, or "
                "model.divergence.kind to forward or reverse."
            )

    def __call__(self, student: Logits, teacher: Logits) -> Float[Tensor, "tokens"]:
        """The divergence at each token, from logits."""
        log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
        if self.kind == "reverse":
            return _kl(log_s, log_t)
        if self.kind == "forward":
            return _kl(log_t, log_s)
        mixture = torch.logaddexp(log_t + math.log(self.beta), log_s + math.log1p(-self.beta))
        return self.beta * _kl(log_t, mixture) + (1 - self.beta) * _kl(log_s, mixture)


def _kl(log_p: Logits, log_q: Logits) -> Float[Tensor, "tokens"]:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
