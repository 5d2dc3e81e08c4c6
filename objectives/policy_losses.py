"""Per-token policy losses. `objectives/aggregation.py` reduces them to a scalar."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objectives.shapes import PerToken, TokenMask
from support.errors import ConfigError

Metrics = dict[str, Tensor]


class PolicyLoss(ABC):
    """The surrogate whose gradient moves the policy."""

    #: whether a row whose advantages are all 0 has no gradient, so that the update need not compute it; a class that
    #: defines `__call__` declares it anew, because it counts as False there until then
    zero_advantage_has_no_gradient = False

    @abstractmethod
    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        """(loss of each token, sums over the masked tokens of quantities to log).

        Args:
            logprobs: log-probs under the policy that is updated; they have the gradient.
            behaviour_logprobs: log-probs under the policy that sampled the tokens.
            advantages: one per token.
            mask: True on tokens that the policy sampled; values elsewhere are arbitrary.
        """


def log_ratios(
    logprobs: PerToken, behaviour_logprobs: PerToken, mask: TokenMask, clamp: float | None = None
) -> PerToken:
    """log rho of each token; no gradient beyond plus and minus `clamp`."""
    # Positions outside the mask have arbitrary values; a zero there keeps exp() and its gradient finite.
    difference = torch.where(mask, logprobs - behaviour_logprobs, torch.zeros_like(logprobs))
    return difference if clamp is None else difference.clamp(-clamp, clamp)


def clipped_surrogate(
    ratio: PerToken, advantages: PerToken, mask: TokenMask, clip_low: float, clip_high: float
) -> tuple[PerToken, Metrics]:
    """(-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A), sums of clipped tokens).

    The ratio has one value per token or one per row.
    """
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    with torch.no_grad():
        low = (ratio < 1 - clip_low) & (advantages < 0) & mask
        high = (ratio > 1 + clip_high) & (advantages > 0) & mask
        metrics = {
            "clip_fraction": (low | high).sum().float(),
            "clip_fraction_low": low.sum().float(),
            "clip_fraction_high": high.sum().float(),
            "ratio": (ratio * mask).sum(),
        }
    return loss, metrics


def check_clip_range(loss: Any) -> None:
    """Refuse a clip range below a ratio of 0 or an upper bound below 1. Raises ConfigError that names the loss."""
    if not 0 <= loss.clip_low <= 1 or loss.clip_high < 0:
        raise ConfigError(
            f"{type(loss).__name__}: clip_low is {loss.clip_low} and clip_high is {loss.clip_high}; set "
            "0 <= clip_low <= 1 and clip_high >= 0."
        )


@dataclass
class ClippedSurrogate(PolicyLoss):
    """-min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A), rho = exp(logprob - behaviour logprob).

    PPO's clipped objective as GRPO uses it (arXiv 2402.03300, eq. 3; `clip_high > clip_low` is DAPO's clip-higher).

    Args:
        clip_low: clip range of the ratio below 1.
        clip_high: clip range of the ratio above 1.
        dual_clip: for A < 0, where the clip leaves rho unbounded, the loss is at most -dual_clip * A (dual clip, Ye et
            al., arXiv 1912.09729; verl: 3). TRL's `delta` (two-sided clip, INTELLECT-2, arXiv 2505.07291) is the same
            number. None sets no bound.
        log_ratio_clamp: log rho is clamped to plus and minus this value (verl: 20). None does not clamp it.
    """

    zero_advantage_has_no_gradient = True

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    log_ratio_clamp: float | None = None

    def __post_init__(self) -> None:
        check_clip_range(self)
        if self.dual_clip is not None and self.dual_clip < 1 + self.clip_high:
            raise ConfigError(
                f"ClippedSurrogate: dual_clip is {self.dual_clip}, which would undo the clip at "
                f"{1 + self.clip_high:g}; set loss.dual_clip to 1 + clip_high or above, or to null for no bound."
            )
        if self.log_ratio_clamp is not None and self.log_ratio_clamp <= 0:
            raise ConfigError(
                f"ClippedSurrogate: log_ratio_clamp is {self.log_ratio_clamp}; set loss.log_ratio_clamp above 0, or to "
                "null for no clamp."
            )

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        log_ratio = log_ratios(logprobs, behaviour_logprobs, mask, self.log_ratio_clamp)
        ratio = log_ratio.exp()
        loss, metrics = clipped_surrogate(ratio, advantages, mask, self.clip_low, self.clip_high)
        if self.dual_clip is not None:
            loss = torch.where(advantages < 0, torch.minimum(loss, -self.dual_clip * advantages), loss)
            metrics["clip_fraction_dual"] = ((ratio.detach() > self.dual_clip) & (advantages < 0) & mask).sum().float()
        return loss, metrics


@dataclass
class Reinforce(PolicyLoss):
    """-A * log pi: the score-function estimator, without a ratio or clipping (Williams 1992; HC-RLHF)."""

    zero_advantage_has_no_gradient = True

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        return -advantages * logprobs, {}
