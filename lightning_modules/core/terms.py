"""Further terms of the objective: the KL penalty, and the shaping of rewards and loss."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from objectives.kl import Estimator, kl_estimate
from support.errors import ConfigError


@dataclass
class KLPenalty:
    """Penalty for the KL divergence of the policy from its reference.

    Args:
        coefficient: beta; 0 needs no reference. A callback may change it between rollouts.
        estimator: k1, k2 or k3; k1+ and k3+ have the values of k1 and k3 and the gradient of k2.
        placement: loss adds it to each token's loss; reward subtracts its sum over the tokens from the completion's
            reward; token_reward subtracts it from each token's reward, for advantages of per-token rewards
            (ReinforcePlusPlus).
        difference_clamp: log(policy / reference) is clamped to plus and minus this value (verl and NeMo: 20).
        value_clamp: the estimate is clamped to plus and minus this value (verl and NeMo: 10).
        importance_weighted: in the loss, multiply the estimate by policy / behaviour, so that its expectation and
            gradient are those of the current policy's KL even after several updates (DeepSeek-V3.2, arXiv 2512.02556;
            TRL's `use_bias_correction_kl`).
    """

    coefficient: float = 0.0
    estimator: Estimator = "k3"
    placement: Literal["loss", "reward", "token_reward"] = "loss"
    difference_clamp: float | None = None
    value_clamp: float | None = None
    importance_weighted: bool = False

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise ConfigError(f"kl.coefficient is {self.coefficient}; set it to 0 or above.")
        if self.placement == "loss" and self.estimator == "k1" and self.coefficient and not self.importance_weighted:
            raise ConfigError(
                "kl.estimator k1 in the loss has zero expected gradient; set kl.estimator to k1+, k2 or k3, "
                "kl.placement to reward, or kl.importance_weighted to true."
            )
        for name in ("difference_clamp", "value_clamp"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"kl.{name} is {value}; set it above 0, or to null for no clamp.")
        if self.importance_weighted and self.placement != "loss":
            raise ConfigError(
                f"kl.importance_weighted acts on the loss only, but kl.placement is {self.placement}; set "
                "kl.placement: loss, or remove kl.importance_weighted."
            )

    def estimate(
        self, logprobs: Float[Tensor, "*shape"], reference: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The penalty of each token, in nats, before the coefficient."""
        return kl_estimate(logprobs, reference, self.estimator, self.difference_clamp, self.value_clamp)


@dataclass
class Shaping:
    """Changes of the rewards before the advantage, and of the loss before the aggregation.

    Args:
        mask_truncated: completions cut off at `max_new_tokens` carry no loss but count in their group's statistics
            (overlong filtering: DAPO, arXiv 2503.14476; TRL's `mask_truncated_completions`).
        truncated_scale: factor of the reward of truncated completions (NeMo RL's `stop_properly_penalty_coef`;
            ProRLv2: 0).
        normalise_rewards: each reward is normalised within its group before the weighted sum (GDPO, arXiv 2601.05242).
        entropy_bonus: coefficient of the entropy of each token's distribution, which is subtracted from the token's
            loss before the aggregation.
        credit: completion gives all turns of a completion its advantage; turn gives each turn its own, from the
            environment's rewards for turns (rewards.TurnRewards, rewards.TurnReward), with all other rewards at the
            last turn.
    """

    mask_truncated: bool = False
    truncated_scale: float = 1.0
    normalise_rewards: bool = False
    entropy_bonus: float = 0.0
    credit: Literal["completion", "turn"] = "completion"

    def __post_init__(self) -> None:
        if not 0 <= self.truncated_scale <= 1:
            raise ConfigError(f"shaping.truncated_scale is {self.truncated_scale}; set it between 0 and 1.")
        if self.entropy_bonus < 0:
            raise ConfigError(f"shaping.entropy_bonus is {self.entropy_bonus}; set it to 0 or above.")
