"""STILL-3's recipe for reasoning models (arXiv 2503.04548): strictly on policy, a KL penalty that fades, truncated completions without loss.

GRPO with one update a large rollout; beta(s) = 0.5 beta_0 (1 + cos(pi s / S)) for s < S, else 0, by `callbacks.ScheduledKL`, or a fixed beta and a
reference that is replaced now and then, by `callbacks.ReferenceReset`. Optionally only questions or responses are learned from whose right answers are longer.

    python main.py fit --config configs/still3.yaml
"""

from typing import Any

import torch
from jaxtyping import Bool
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty, Shaping
from objectives import Advantage, Aggregation, ClippedSurrogate, GroupNorm, PolicyLoss, TokenMean
from objectives.selection import Selection, selected_rows
from policies import PolicyParams
from rewards import Reward
from rewards.still3 import action_count
from rollouts import BatchPlan, Engine, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.papers import Experiment, Paper


def still3_adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW, learning rate 2e-6, no weight decay (STILL-3's 1.5B)."""
    return torch.optim.AdamW(parameters, lr=2e-6, weight_decay=0.0)


class Still3(OnPolicyModule):
    """STILL-3's reinforcement learning; the defaults are those of its 1.5B.

    Args:
        policy: the model.
        rewards: what a completion earns; 1 or 0 for the answer in the paper.
        select: learn from all rows, from `questions` or from `responses` whose right answers are longer (objectives.selection); needs a reward that judges
            correctness.
        batch: 128 prompts of 8 completions, one update: strictly on policy. sampling: temperature 1, up to 29,000 tokens.
        advantage: group z-score. loss: clip 0.2. aggregation: the mean over all tokens.
        kl: 1e-3 on k3 in the loss, for a schedule to act on.
        evaluation, engine, importance_cap, max_grad_norm: as in GRPO. shaping: truncated completions carry no loss.
        optimizer, lr_scheduler: AdamW at 2e-6, constant.
    """

    equal_rewards_teach_nothing = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        select: Selection = "none",
        batch: BatchPlan | None = None,
        sampling: SamplingParams | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        aggregation: Aggregation | None = None,
        kl: KLPenalty | None = None,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = still3_adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
        shaping: Shaping | None = None,
    ) -> None:
        judges = [reward for reward in rewards if reward.is_correctness]
        if not judges:
            raise ConfigError(
                f"Still3 needs a reward that judges correctness, such as rewards.ExactAnswer; model.rewards has {[r.name for r in rewards]}."
            )
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=128, group_size=8),
            sampling or SamplingParams(max_new_tokens=29_000),
            rewards,
            advantage or GroupNorm(),
            loss or ClippedSurrogate(),
            aggregation or TokenMean(),
            kl or KLPenalty(coefficient=1e-3),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
            shaping or Shaping(mask_truncated=True),
        )
        self.select: Selection = select
        self.judge = judges[0]

    def correct(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """Which completions are right."""
        return (self.judge.unscaled(batch.rewards[self.judge.name], batch) >= 1).to(batch.completion_ids.device)

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        return (
            super().loss_mask(batch)
            & selected_rows(batch.lengths, self.correct(batch), batch.groups, self.select)[:, None]
        )

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        metrics = super().update(batch)
        right, lengths, learned = self.correct(batch), batch.lengths.double(), self.loss_mask(batch).any(1)
        words = torch.tensor(
            [action_count(text) for text in batch.completions], dtype=torch.float64, device=lengths.device
        )
        rows = torch.ones_like(lengths)
        parts = [rows, ~batch.truncated, learned, words, words > 0, right, ~right, lengths * right, lengths * ~right]
        # Sums over all processes, so that a process without a right completion agrees with the others on what is logged.
        total, finished, used, actions, acting, hits, misses, long, short = self.summed(
            torch.stack([p.double().sum() for p in parts])
        ).tolist()
        metrics |= {
            "completion_ratio": finished / total,
            "learned_from": used / total,
            "keywords": actions / total,
            "keyword_ratio": acting / total,
        }
        by_kind = {"length_correct": (long, hits), "length_wrong": (short, misses)}
        return metrics | {name: tokens / count for name, (tokens, count) in by_kind.items() if count}


PAPER = Paper(
    name="still3",
    title="STILL-3",
    arxiv="2503.04548",
    idea="an on-policy recipe: a fading KL penalty, truncated completions without loss, selection by length",
    classes=("lightning_modules.Still3",),
    configs=("still3",),
    effect="0.82 → 0.94; with a reward for length 0.66, and completions no longer end",
    experiment=Experiment(
        rollouts=40,
        arms={
            "still3": {},
            "still3 + length": {
                "model.rewards": [
                    {"class_path": "rewards.ExactAnswer", "init_args": {"weight": 2.0}},
                    {"class_path": "rewards.LengthBonus", "init_args": {"scale": 72}},
                ]
            },
            "grpo": {
                "config": ["grpo"],
                "model.policy.model": "assets/tiny_rambler",
                "data.levels": [1, 2, 3],
                "data.val_size": 60,
                "model.sampling.max_new_tokens": 72,
                "model.evaluation.sampling.max_new_tokens": 72,
                "model.batch.prompts_per_rollout": 8,
                "model.optimizer.init_args.lr": 2e-4,
            },
        },
        columns={
            "val pass@1": "val/pass1",
            "val length": "val/length",
            "val truncated": "val/truncated",
            "completion ratio": "train/completion_ratio",
        },
        expect="With the length reward: longer completions, fewer that end, a lower pass@1 than without it.",
    ),
)
