"""ProRL: GRPO that keeps improving for thousands of steps (arXiv 2505.24864).

Group-normalised advantages, clip-higher 0.2 / 0.4, the mean over all tokens, KL to a reference in the loss, groups of equal rewards
replaced (dynamic sampling), temperature 1.2; and a reference that the policy replaces when it stalls, which `callbacks.ReferenceReset` decides.

    python main.py fit --config configs/prorl.yaml
"""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty, Shaping
from objectives import Advantage, Aggregation, ClippedSurrogate, GroupNorm, PolicyLoss, TokenMean
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, Engine, SamplingParams
from support.errors import ConfigError
from support.papers import Paper


def prorl_adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW, learning rate 2e-6, no weight decay (ProRL, arXiv 2505.24864)."""
    return torch.optim.AdamW(parameters, lr=2e-6, weight_decay=0.0)


class ProRL(OnPolicyModule):
    """Prolonged reinforcement learning; the defaults are the paper's where it states them.

    Args:
        policy: the model.
        rewards: what a completion earns; graded ones are welcome. `rewards.PerTask` gives every task family its own.
        batch: 256 prompts of 16 completions, four updates, dynamic sampling with at most as many completions again.
        sampling: temperature 1.2, up to 8,192 tokens.
        advantage: group z-score. loss: clip 0.2 below and 0.4 above. aggregation: the mean over all tokens of an update.
        kl: in the loss. The paper does not state its coefficient; 1e-4 on k2 with clamps is its authors' later recipe (NeMo RL, ProRL v2).
        evaluation: how validation samples.
        engine: what generates; the embedded one if None. importance_cap: correction where its log-probs are not the policy's.
        optimizer, lr_scheduler: AdamW at 2e-6, constant.
        max_grad_norm: gradients are scaled down to this norm.
        shaping: truncated completions, several rewards, entropy bonus.
    """

    equal_rewards_teach_nothing = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        batch: BatchPlan | None = None,
        sampling: SamplingParams | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        aggregation: Aggregation | None = None,
        kl: KLPenalty | None = None,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = prorl_adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
        shaping: Shaping | None = None,
    ) -> None:
        if not rewards:
            raise ConfigError(
                "ProRL has no rewards, so there is nothing to maximise; list at least one under model.rewards."
            )
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=256, group_size=16, updates_per_rollout=4, refill=1.0),
            sampling or SamplingParams(max_new_tokens=8192, temperature=1.2),
            rewards,
            advantage or GroupNorm(),
            loss or ClippedSurrogate(clip_low=0.2, clip_high=0.4),
            aggregation or TokenMean(),
            kl or KLPenalty(coefficient=1e-4, estimator="k2", difference_clamp=20.0, value_clamp=10.0),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
            shaping,
        )


PAPER = Paper(
    name="prorl",
    title="ProRL",
    arxiv="2505.24864",
    idea="resets of the reference, dynamic sampling, several task families",
    classes=("lightning_modules.ProRL", "callbacks.ReferenceReset"),
    configs=("prorl",),
    effect="five families: 0.72 with resets, 0.58 without; pass@64 of the hardest 0.60 → 0.97",
    comparison={
        "model.rewards": [{"class_path": "rewards.ExactAnswer", "init_args": {}}],
        "trainer.callbacks": [{"class_path": "callbacks.ReferenceReset", "init_args": {"every_n_rollouts": 10}}],
    },
)
