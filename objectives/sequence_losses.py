"""Policy losses whose ratio belongs to a whole completion, not to a token.

AdaptThink's official code (arXiv 2505.13417) and GSPO (arXiv 2507.18071) both use the length-normalised form.
"""

import torch

from objectives.policy_losses import PolicyLoss
from support.errors import ConfigError


class SequenceSurrogate(PolicyLoss):
    """-min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i), the same value on every token of completion i.

    s_i = exp(mean_t log rho_it), or exp(sum_t log rho_it) without the length root; rho_it = pi / behaviour. Under SequenceMean the mean of
    equal values is the sequence's loss, and the gradient that flows back is s_i times the mean (or sum) of grad log pi over the tokens.

    Args:
        length_root: take the |o_i|-th root of the product of the ratios: it keeps a single token's ratio far from 1 inside the clip range.
        clip_low: how far s_i may fall below 1. clip_high: how far it may rise above.
    """

    def __init__(self, clip_low: float = 0.2, clip_high: float = 0.2, length_root: bool = True) -> None:
        if not 0 <= clip_low <= 1 or clip_high < 0:
            raise ConfigError(f"SequenceSurrogate: needs 0 <= clip_low <= 1 and clip_high >= 0, got {clip_low}, {clip_high}.")
        self.clip_low, self.clip_high, self.length_root = clip_low, clip_high, length_root

    def __call__(self, logprobs, behaviour_logprobs, advantages, mask):
        # Masked positions hold arbitrary numbers; a zero there keeps their gradient finite.
        log_ratio = torch.where(mask, logprobs - behaviour_logprobs, torch.zeros_like(logprobs))
        length = mask.sum(1, keepdim=True).clamp(min=1) if self.length_root else 1
        ratio = (log_ratio.sum(1, keepdim=True) / length).exp()
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        with torch.no_grad():
            low = (ratio < 1 - self.clip_low) & (advantages < 0) & mask
            high = (ratio > 1 + self.clip_high) & (advantages > 0) & mask
            metrics = {
                "clip_fraction": (low | high).sum().float(),
                "clip_fraction_low": low.sum().float(),
                "clip_fraction_high": high.sum().float(),
                "ratio": (ratio * mask).sum(),
            }
        return loss, metrics
