"""Policy losses with one importance ratio per completion instead of one per token.

AdaptThink's official code (arXiv 2505.13417) and GSPO (arXiv 2507.18071) both use the length-normalised form.
"""

from dataclasses import dataclass

from objectives.policy_losses import Metrics, PolicyLoss, check_clip_range, clipped_surrogate, log_ratios
from objectives.shapes import PerToken, TokenMask


@dataclass
class SequenceSurrogate(PolicyLoss):
    """-min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i), the same value on every token of completion i.

    s_i = exp(mean_t log rho_it), or exp(sum_t log rho_it) without the length root; rho_it = pi / behaviour. Under
    SequenceMean the mean of equal values is the sequence's loss, and its gradient is s_i times the mean (or sum) of
    grad log pi over the tokens.

    Args:
        length_root: take the |o_i|-th root of the product of the ratios, so that one token with a ratio far from 1
            stays in the clip range.
        clip_low: clip range of s_i below 1.
        clip_high: clip range of s_i above 1.
    """

    zero_advantage_has_no_gradient = True

    clip_low: float = 0.2
    clip_high: float = 0.2
    length_root: bool = True

    def __post_init__(self) -> None:
        check_clip_range(self)

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        log_ratio = log_ratios(logprobs, behaviour_logprobs, mask)
        length = mask.sum(1, keepdim=True).clamp(min=1) if self.length_root else 1
        ratio = (log_ratio.sum(1, keepdim=True) / length).exp()
        return clipped_surrogate(ratio, advantages, mask, self.clip_low, self.clip_high)
