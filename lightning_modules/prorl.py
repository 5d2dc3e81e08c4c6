"""ProRL: GRPO that keeps improving for thousands of steps (arXiv 2505.24864).

Group-normalised advantages, clip-higher 0.2 / 0.4, the mean over all tokens, KL to a reference in the loss, groups of
equal rewards replaced (dynamic sampling), temperature 1.2. `callbacks.ReferenceReset` replaces the reference by the
policy when progress stalls.

    python main.py fit --config configs/prorl.yaml
"""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable

from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty
from objectives import Aggregation, ClippedSurrogate, PolicyLoss, TokenMean
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, SamplingOverrides, SamplingParams
from support.papers import Paper


class ProRL(OnPolicyModule):
    """Prolonged reinforcement learning; the defaults are the paper's where it states them.

    Args:
        policy: the model.
        rewards: rewards of a completion, which may be graded. `rewards.PerTask` gives each task its own reward.
        batch: 256 prompts x 16 completions, four updates, dynamic sampling of at most as many further prompts.
        sampling: temperature 1.2, up to 8,192 tokens.
        loss: clip 0.2 below and 0.4 above.
        aggregation: the mean over all tokens of an update.
        kl: in the loss. The paper does not state its coefficient; 1e-4 on k2 with clamps is its authors' later recipe
            (NeMo RL, ProRL v2).
        evaluation: temperature 0.6 and top-p 0.95 (the paper's benchmarks: 16 samples of up to 32,768 tokens).
        optimizer: AdamW at 2e-6.
        kwargs: group z-score and the rest as in GRPO; see OnPolicyModule.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        batch: BatchPlan = BatchPlan(256, 16, updates_per_rollout=4, refill=1.0),
        sampling: SamplingParams = SamplingParams(max_new_tokens=8192, temperature=1.2),
        loss: PolicyLoss = ClippedSurrogate(clip_low=0.2, clip_high=0.4),
        aggregation: Aggregation = TokenMean(),
        kl: KLPenalty = KLPenalty(1e-4, "k2", difference_clamp=20.0, value_clamp=10.0),
        evaluation: Evaluation = Evaluation(sampling=SamplingOverrides(temperature=0.6, top_p=0.95)),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=2e-6, weight_decay=0.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            loss=loss,
            aggregation=aggregation,
            kl=kl,
            evaluation=evaluation,
            optimizer=optimizer,
            **kwargs,
        )


PAPER = Paper(
    name="prorl",
    title="ProRL",
    arxiv="2505.24864",
    idea="resets of the reference, dynamic sampling, several task families",
    classes=("lightning_modules.ProRL", "callbacks.ReferenceReset"),
    configs=("prorl",),
    effect="five families: 0.75 with resets, 0.57 without; pass@64 of the hardest 0.60 → 0.97",
    comparison={
        "model.rewards": [{"class_path": "rewards.ExactAnswer", "init_args": {}}],
        "trainer.callbacks": [{"class_path": "callbacks.ReferenceReset", "init_args": {"every_n_rollouts": 10}}],
    },
)
