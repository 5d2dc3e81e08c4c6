"""GMPO (Zhao et al., arXiv 2507.20673, eq. 4): the geometric mean of a completion's clipped token ratios.

J_i = (prod_t min(rho_t^s, clip(rho_t^s, e^-c, e^c))^s)^(1/|o_i|) A_i with s = sgn(A_i) and c = 0.4, computed as the
exponential of a mean of log-ratios:

    python main.py fit --config configs/grpo.yaml --config gmpo.yaml
"""

from dataclasses import dataclass

import torch

from objectives import PolicyLoss
from objectives.policy_losses import Metrics, log_ratios
from objectives.shapes import PerToken, TokenMask
from support.errors import ConfigError


@dataclass
class GMPO(PolicyLoss):
    """-exp(mean_t s min(s log rho_t, clip(s log rho_t, -c, c))) A, the same value on every token of a completion.

    Args:
        clip: c, the clip range of the log-ratio on both sides; the paper's is 0.4.
    """

    zero_advantage_has_no_gradient = True  # the update leaves rows without an advantage out

    clip: float = 0.4

    def __post_init__(self) -> None:
        if self.clip <= 0:
            raise ConfigError(f"GMPO: clip is {self.clip}; set it above 0.")

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        sign = advantages.sign()
        signed = sign * log_ratios(logprobs, behaviour_logprobs, mask)
        clipped = torch.minimum(signed, signed.clamp(-self.clip, self.clip))
        mean = ((sign * clipped) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        ratio = mean.exp()
        loss = -ratio * advantages
        with torch.no_grad():
            is_clipped = (signed > self.clip) & mask
        return loss, {"clip_fraction": is_clipped.sum().float(), "ratio": (ratio.detach() * mask).sum()}
