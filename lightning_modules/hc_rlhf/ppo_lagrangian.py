"""PPO-Lagrangian, the method of Safe RLHF and a baseline of HC-RLHF: a reward critic and a cost critic.

Dai et al. (arXiv 2310.12773): A = (A_reward - lambda A_cost) / (1 + lambda) in PPO's clipped objective, with lambda
ascending lambda * (mean cost - tau) in log space. The KL penalty lowers the rewards and raises the costs of tokens.

    python main.py fit --config configs/hc_rlhf.yaml --config configs/baselines/ppo_lagrangian.yaml
"""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.core.critic import Critic, CriticMethod
from lightning_modules.core.terms import KLPenalty
from lightning_modules.hc_rlhf.module import HCRLHF
from lightning_modules.hc_rlhf.safety_test import SafetyTest
from lightning_modules.hc_rlhf.settings import Constraint
from objectives import GAE, Aggregation, ClippedSurrogate, PolicyLoss, TokenMean
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, RolloutBatch


class PPOLagrangian(CriticMethod, HCRLHF):
    """Safe RLHF's PPO-Lagrangian with HC-RLHF's models, costs and safety test; the defaults are its official code's.

    To the hooks of HC-RLHF (`score`, `observe`, `returns`, `auxiliary_loss` and `metrics`) its base classes add
    `advantages`, `value_term`, `trained_parameters` and `parameter_groups` for the critics.

    Args:
        policy: the supervised fine-tuned model, also the reference and the start of both critics.
        rewards: rewards to use instead of a reward model.
        critic: learning rate 5e-6, values clipped at 5; there are two of it.
        constraint: on the mean of the last 128 costs, without pessimism; lambda at most 5, step 0.1.
        test: skipped; nothing is certified.
        batch: 64 prompts per rollout, one completion per prompt, four updates.
        advantage: gamma 1, lambda 0.95, not normalised.
        loss: clip 0.1.
        aggregation: the mean over all tokens of an update.
        kl: 0.1 on k1 in every token's reward and cost.
        optimizer: AdamW at 1e-5, betas 0.9 and 0.95, weight decay 0.01.
        max_grad_norm: 1, by critic and policy.
        kwargs: as in HCRLHF.
    """

    critic_names = ("", "cost_")

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward] = [],
        *,
        critic: Critic = Critic(value_clip=5.0, lr=5e-6),
        constraint: Constraint = Constraint(c1=0.0, c2=0.0, window=128, lambda_lr=0.1, lambda_max=5.0),
        test: SafetyTest = SafetyTest(skip=True),
        batch: BatchPlan = BatchPlan(prompts_per_rollout=64, group_size=1, updates_per_rollout=4),
        advantage: GAE = GAE(normalise=False),
        loss: PolicyLoss = ClippedSurrogate(clip_low=0.1, clip_high=0.1),
        aggregation: Aggregation = TokenMean(),
        kl: KLPenalty = KLPenalty(coefficient=0.1, estimator="k1", placement="token_reward"),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01),
        max_grad_norm: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            constraint=constraint,
            test=test,
            batch=batch,
            advantage=advantage,
            loss=loss,
            aggregation=aggregation,
            kl=kl,
            optimizer=optimizer,
            max_grad_norm=max_grad_norm,
            **kwargs,
        )
        self.set_critic(critic)

    def token_rewards(self, batch: RolloutBatch) -> list[Tensor]:
        """Rewards and costs of tokens, one critic each. The KL counts the same whatever lambda is."""
        by_token = self.kl.placement == "token_reward" and self.kl.coefficient
        penalty = self.kl.coefficient * self.token_kl(batch) if by_token else 0.0
        reward = self.at_tokens(batch, self.clipped_reward(batch))
        return [reward - penalty, self.at_tokens(batch, self.augmented_cost(batch)) + penalty]

    def combined(self, advantages: list[Tensor]) -> Tensor:
        return self.constrained(*advantages)
