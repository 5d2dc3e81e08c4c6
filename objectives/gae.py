"""Generalised advantage estimation and the loss of a critic: PPO (Schulman et al., arXiv 1707.06347 and 1506.02438).

A state is a prefix of the completion, an action is the next token. With the critic's value V_t of the state before
token t:
delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lambda A_{t+1},  R_t = A_t + V_t (the critic's target).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from objectives.advantages import Advantage
from objectives.shapes import Groups, PerRow, PerToken, TokenIds, TokenMask
from objectives.statistics import Deviation, Reduce, global_moments, own
from support.errors import ConfigError


@dataclass
class GAE(Advantage):
    """Advantages of tokens from a critic's values; only methods with a critic, such as PPO, can use it.

    Time passes at tokens that the policy sampled: the tokens of an environment are skipped, neither discounted nor
    valued. The end of a completion has the value zero, also where it was cut off.

    Args:
        gamma: discount from one token of the policy to the next.
        lam: lambda; 1 compares returns with values (no bias), 0 one token with the next.
        normalise: subtract the mean and divide by the deviation, over all tokens of all processes' rollouts.
        eps: added to the variance.
        deviation: sample, as in TRL and verl, or population, as in OpenRLHF.
    """

    token_rewards, needs_group, needs_critic = True, False, True

    gamma: float = 1.0
    lam: float = 0.95
    normalise: bool = True
    eps: float = 1e-8
    deviation: Deviation = "sample"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1 or not 0 <= self.lam <= 1 or self.eps <= 0:
            raise ConfigError(
                f"GAE: gamma is {self.gamma}, lam is {self.lam} and eps is {self.eps}; set advantage.gamma above 0 and "
                "at most 1, advantage.lam from 0 to 1, and advantage.eps above 0."
            )

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerRow:
        """Without a critic there is no such advantage. Raises ConfigError."""
        raise ConfigError(
            "GAE needs the values of a critic; train with lightning_modules.PPO, or set model.advantage to one that "
            "needs none, such as objectives.ReinforcePlusPlus."
        )

    def estimate(
        self,
        rewards: PerToken,
        values: PerToken,
        mask: TokenMask,
        segments: Int[Tensor, "rows time"] | None = None,
    ) -> tuple[PerToken, PerToken]:
        """(advantages before `normalised`, targets of the critic); both 0 outside the mask.

        Args:
            rewards: of every token. NaN in a row marks one that no reward applied to: its advantages are 0 and its
                targets NaN.
            values: of the state before every token.
            mask: True on tokens that the policy sampled.
            segments: number of the episode that each token belongs to, for rows with several; neither rewards nor
                values reach from one into another. None for one episode per row.
        """
        known = ~torch.where(mask, rewards, 0.0).isnan().any(1, keepdim=True)
        rewards = rewards.to(values).nan_to_num(0.0)
        advantages, running, following = torch.zeros_like(values), values.new_zeros(len(values)), None
        next_value = running
        for t in reversed(range(values.shape[1])):
            goes_on = 1.0 if segments is None or following is None else (segments[:, t] == following).to(values)
            delta = rewards[:, t] + self.gamma * goes_on * next_value - values[:, t]
            advantage = delta + self.gamma * self.lam * goes_on * running
            running = torch.where(mask[:, t], advantage, running)
            next_value = torch.where(mask[:, t], values[:, t], next_value)
            if segments is not None:
                following = segments[:, t] if following is None else torch.where(mask[:, t], segments[:, t], following)
            advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
        targets = torch.where(known, torch.where(mask, advantages + values, 0.0), torch.nan)
        return torch.where(known, advantages, 0.0), targets

    def normalised(self, advantages: PerToken, mask: TokenMask) -> PerToken:
        """The advantages as the policy learns from them.

        Args:
            mask: True on tokens that count: sampled ones of rows that a reward applied to.
        """
        if not self.normalise:
            return advantages
        mean, variance = global_moments(advantages, mask, self.reduce, self.deviation)
        whitened = ((advantages - mean) / (variance + self.eps).sqrt()).to(advantages)
        return torch.where(mask, whitened, torch.zeros_like(advantages))


def value_loss(
    values: Float[Tensor, "*shape"], old: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], clip: float | None
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """(1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2), where the clipped error is the larger).

    Args:
        old: values when the rollout was sampled.
        clip: a value that has moved further than this from the old one in the direction of its target has no gradient;
            None does not clip.
    """
    error = (values - targets) ** 2
    if clip is None:
        return 0.5 * error, torch.zeros_like(error, dtype=torch.bool)
    clipped_error = (old + (values - old).clamp(-clip, clip) - targets) ** 2
    # Within the range both errors are one number, up to rounding.
    is_clipped = ((values - old).abs() > clip) & (clipped_error > error)
    return 0.5 * torch.where(is_clipped, clipped_error, error), is_clipped.detach()


def explained_variance(
    values: Float[Tensor, "*shape"],
    targets: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    reduce: Reduce = own,
) -> float | None:
    """1 - Var(R - V) / Var(R) over the masked tokens of all processes; None if all targets are equal.

    1 is a perfect critic, 0 one that says the mean, and below 0 its values add noise.
    """
    _, total = global_moments(targets, mask, reduce)
    _, rest = global_moments(targets - values, mask, reduce)
    return None if float(total) == 0 else 1 - float(rest) / float(total)
