"""What stands beside the objective's three parts: the KL penalty, and the shaping of rewards and loss."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from objectives.kl import Estimator, kl_estimate
from support.errors import ConfigError


@dataclass
class KLPenalty:
    """How the policy is held near its reference.

    Args:
        coefficient: beta; 0 needs no reference. A callback may change it between rollouts.
        estimator: k1, k2 or k3; k1+ and k3+ have their values and k2's gradient.
        placement: a term of every token's loss; a deduction from every completion's reward (summed over its tokens); or one from the reward
            of every token, for advantages that take those (ReinforcePlusPlus).
        difference_clamp: log(policy / reference) is kept within plus and minus this (verl and NeMo: 20).
        value_clamp: the estimate is kept within plus and minus this (verl and NeMo: 10).
        importance_weighted: in the loss, multiply the estimate by policy / behaviour, which makes its expectation and gradient those of the
            KL of the current policy also after several updates (DeepSeek-V3.2, arXiv 2512.02556; TRL's `use_bias_correction_kl`).
    """

    coefficient: float = 0.0
    estimator: Estimator = "k3"
    placement: Literal["loss", "reward", "token_reward"] = "loss"
    difference_clamp: float | None = None
    value_clamp: float | None = None
    importance_weighted: bool = False

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise ConfigError(f"kl.coefficient is {self.coefficient}; it must be 0 or above.")
        if self.placement == "loss" and self.estimator == "k1" and self.coefficient and not self.importance_weighted:
            raise ConfigError(
                "kl.estimator k1 in the loss has zero expected gradient; choose k1+, k2 or k3, or kl.placement: reward, or kl.importance_weighted."
            )
        for name in ("difference_clamp", "value_clamp"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"kl.{name} is {value}; it must be above 0, or null for none.")
        if self.importance_weighted and self.placement != "loss":
            raise ConfigError("kl.importance_weighted is about the loss; set kl.placement: loss, or leave it out.")

    def estimate(
        self, logprobs: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The penalty of each token, in nats, before the coefficient."""
        return kl_estimate(logprobs, reference, self.estimator, self.difference_clamp, self.value_clamp)


@dataclass
class Shaping:
    """What is done to rewards and loss around advantage, loss and aggregation.

    Args:
        mask_truncated: completions cut off at `max_new_tokens` carry no loss but count in their group's statistics (overlong filtering:
            DAPO, arXiv 2503.14476; TRL's `mask_truncated_completions`).
        truncated_scale: their reward is multiplied by this (NeMo RL's `stop_properly_penalty_coef`; ProRLv2: 0).
        normalise_rewards: each reward is normalised within its group before the weighted sum (GDPO, arXiv 2601.05242).
        entropy_bonus: this times the entropy of every token's distribution is subtracted from its loss, and aggregated with it.
    """

    mask_truncated: bool = False
    truncated_scale: float = 1.0
    normalise_rewards: bool = False
    entropy_bonus: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.truncated_scale <= 1:
            raise ConfigError(f"shaping.truncated_scale is {self.truncated_scale}; it must lie between 0 and 1.")
        if self.entropy_bonus < 0:
            raise ConfigError(f"shaping.entropy_bonus is {self.entropy_bonus}; it must be 0 or above.")
