"""Losses that weigh or gate every token smoothly, where the clipped surrogate has no gradient."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.policy_losses import Metrics, PolicyLoss, log_ratios
from objectives.shapes import PerToken, TokenMask
from support.errors import ConfigError


def _by_sign(first: Tensor, one: float, other: float, like: Tensor) -> Tensor:
    return torch.where(first, like.new_tensor(one), like.new_tensor(other))


@dataclass
class CISPO(PolicyLoss):
    """-stop_gradient(clip(rho)) * A * log pi: the weight is clipped, so every token keeps its gradient.

    Source: MiniMax-M1, arXiv 2506.13585, eqs. 4 and 5. Two conventions of the upper bound are in use; set one of them.

    Args:
        clip_high: the weight is at most 1 + clip_high (the paper, verl, open-instruct).
        ratio_cap: the weight is at most ratio_cap (TRL's `epsilon_high`; 5 in ScaleRL, arXiv 2510.13786).
        clip_low: the weight is at least 1 - clip_low (verl); None sets no lower bound (TRL; the paper's lower bound is
            so wide that it never acts).
        log_ratio_clamp: log rho is clamped to plus and minus this value (verl: 20).
    """

    zero_advantage_has_no_gradient = True

    clip_high: float | None = None
    ratio_cap: float | None = None
    clip_low: float | None = None
    log_ratio_clamp: float | None = None

    def __post_init__(self) -> None:
        if (self.clip_high is None) == (self.ratio_cap is None):
            raise ConfigError(
                f"CISPO: clip_high is {self.clip_high} and ratio_cap is {self.ratio_cap}; set exactly one of clip_high "
                "(the weight is at most 1 + clip_high) and ratio_cap (it is at most ratio_cap)."
            )
        if self.upper <= 0 or (self.lower is not None and not 0 <= self.lower <= self.upper):
            raise ConfigError(
                f"CISPO: the weight's bounds are {self.lower} and {self.upper}; set clip_low and clip_high or "
                "ratio_cap so that 0 <= lower <= upper."
            )

    @property
    def upper(self) -> float:
        """Largest weight of a token."""
        return 1 + self.clip_high if self.clip_high is not None else float(self.ratio_cap or 0)

    @property
    def lower(self) -> float | None:
        """Smallest weight of a token; None for no bound."""
        return None if self.clip_low is None else 1 - self.clip_low

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        ratio = log_ratios(logprobs.detach(), behaviour_logprobs, mask, self.log_ratio_clamp).exp()
        weight = ratio.clamp(self.lower, self.upper)
        loss = -weight * advantages * logprobs
        return loss, {"clip_fraction": ((weight != ratio) & mask).sum().float(), "ratio": (ratio * mask).sum()}


@dataclass
class SAPO(PolicyLoss):
    """-4/tau * sigmoid(tau * (rho - 1)) * A: a soft gate around rho = 1, with the plain ratio's slope at rho = 1.

    Source: Soft Adaptive Policy Optimization, arXiv 2511.20347.

    Args:
        temperature_positive: tau for A > 0.
        temperature_negative: tau for A <= 0; a higher tau decays faster.
    """

    zero_advantage_has_no_gradient = True

    temperature_positive: float = 1.0
    temperature_negative: float = 1.05

    def __post_init__(self) -> None:
        if min(self.temperature_positive, self.temperature_negative) <= 0:
            raise ConfigError(
                f"SAPO: temperature_positive is {self.temperature_positive} and temperature_negative is "
                f"{self.temperature_negative}; set both above 0."
            )

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        ratio = log_ratios(logprobs, behaviour_logprobs, mask).exp()
        tau = _by_sign(advantages > 0, self.temperature_positive, self.temperature_negative, logprobs)
        loss = -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages
        return loss, {"ratio": (ratio.detach() * mask).sum()}


@dataclass
class VESPO(PolicyLoss):
    """-stop_gradient(phi(w)) * A * log pi with phi(w) = exp(lambda) w^k exp(-lambda w) (VESPO, arXiv 2602.10693).

    w = exp(sum_t log rho_t) is the ratio of the whole completion, a sum and not a mean; phi(1) = 1 and phi falls on
    both sides. Log-ratios are clamped to plus and minus 20, and log w to the range from log(1e-8) to 20, as in TRL.

    Args:
        k_positive, lambda_positive: k and lambda for A >= 0.
        k_negative, lambda_negative: k and lambda for A < 0.
    """

    zero_advantage_has_no_gradient = True

    k_positive: float = 2.0
    lambda_positive: float = 3.0
    k_negative: float = 3.0
    lambda_negative: float = 2.0

    def __post_init__(self) -> None:
        if min(self.k_positive, self.lambda_positive, self.k_negative, self.lambda_negative) <= 0:
            raise ConfigError(f"VESPO: got {self}; set every k and lambda above 0.")

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        log_w = log_ratios(logprobs.detach(), behaviour_logprobs, mask, 20.0).sum(1, keepdim=True)
        log_w = log_w.clamp(math.log(1e-8), 20.0)
        k = _by_sign(advantages >= 0, self.k_positive, self.k_negative, logprobs)
        rate = _by_sign(advantages >= 0, self.lambda_positive, self.lambda_negative, logprobs)
        phi = (rate + k * log_w - rate * log_w.exp()).exp()
        return -phi * advantages * logprobs, {"phi": (phi * mask).sum()}
