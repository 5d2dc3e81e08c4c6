"""STILL-3's recipe for reasoning models (arXiv 2503.04548): on policy, decaying KL penalty, no loss on truncated rows.

GRPO with one update per large rollout. `callbacks.ScheduledKL` sets beta(s) = 0.5 beta_0 (1 + cos(pi s / S)) for s < S,
else 0; alternatively beta is fixed and `callbacks.ReferenceReset` replaces the reference from time to time. Optionally
only questions or responses whose correct answers are longer carry loss.

    python main.py fit --config configs/still3.yaml
"""

from typing import Any

import torch
from jaxtyping import Bool
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import KLPenalty, Shaping
from objectives import Aggregation, TokenMean
from objectives.selection import Selection, selected_rows
from policies import PolicyParams
from rewards import Reward
from rewards.still3 import action_count
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from support.papers import Claim, Experiment, Paper
from support.processes import summed


class Still3(OnPolicyModule):
    """STILL-3's reinforcement learning; the defaults are those of its 1.5B model.

    Args:
        policy: the model.
        rewards: rewards of a completion; 1 or 0 for the answer in the paper. One of them judges correctness.
        select: learn from all rows, or from `questions` or `responses` whose correct answers are longer
            (objectives.selection).
        batch: 128 prompts x 8 completions, one update: strictly on policy.
        sampling: temperature 1, up to 29,000 tokens.
        aggregation: the mean over all tokens.
        kl: 1e-3 on k3 in the loss, to be changed by a schedule.
        optimizer: AdamW at 2e-6.
        shaping: truncated completions carry no loss.
        kwargs: group z-score, clip 0.2; see OnPolicyModule.
    """

    needs_correctness = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        select: Selection = "none",
        batch: BatchPlan = BatchPlan(prompts_per_rollout=128, group_size=8),
        sampling: SamplingParams = SamplingParams(max_new_tokens=29_000),
        aggregation: Aggregation = TokenMean(),
        kl: KLPenalty = KLPenalty(coefficient=1e-3),
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=2e-6, weight_decay=0.0),
        shaping: Shaping = Shaping(mask_truncated=True),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            aggregation=aggregation,
            kl=kl,
            optimizer=optimizer,
            shaping=shaping,
            **kwargs,
        )
        self.select: Selection = select
        self.judge = next(reward for reward in self.rewards if reward.is_correctness)

    def correct(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """Completions that are right."""
        return (self.judge.unscaled(batch.rewards[self.judge.name], batch) >= 1).to(batch.completion_ids.device)

    def loss_mask(self, batch: RolloutBatch) -> Bool[Tensor, "rows time"]:
        judged = ~batch.rewards[self.judge.name].isnan().to(batch.lengths.device)
        selected = selected_rows(batch.lengths, self.correct(batch), batch.groups, self.select, judged)
        return super().loss_mask(batch) & selected[:, None]

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        correct, lengths, learned = self.correct(batch), batch.lengths.double(), self.loss_mask(batch).any(1)
        wrong_rows = ~correct & ~batch.rewards[self.judge.name].isnan().to(lengths.device)
        words = [action_count(text) for text in batch.completions]
        actions = torch.tensor(words, dtype=torch.float64, device=lengths.device)
        rows = torch.ones_like(lengths)
        values = [rows, ~batch.truncated, learned, actions, actions > 0]
        values += [correct, wrong_rows, lengths * correct, lengths * wrong_rows]
        # Sums over all processes, so that all processes log the same names, also those without a right completion.
        sums = summed(torch.stack([value.double().sum() for value in values])).tolist()
        total, finished, used, keywords, acting, right, wrong, right_tokens, wrong_tokens = sums
        metrics = {
            "completion_ratio": finished / total,
            "learned_from": used / total,
            "keywords": keywords / total,
            "keyword_ratio": acting / total,
        }
        by_kind = {"length_correct": (right_tokens, right), "length_wrong": (wrong_tokens, wrong)}
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
            "still3 + length": {"config": ["still3", "still3/length_reward"]},
            "still3 + actions": {"config": ["still3", "still3/action_reward"]},
            "large batch": {"config": ["still3", "still3/large_batch"]},
            "off policy": {"config": ["still3", "still3/off_policy"]},
            "large group": {"config": ["still3", "still3/large_group"]},
            "hot": {"config": ["still3", "still3/hot"]},
            "cool": {"config": ["still3", "still3/cool"]},
            "kl none": {"config": ["still3", "still3/kl_none"]},
            "kl fixed": {"config": ["still3", "still3/kl_fixed"]},
            "kl reset": {"config": ["still3", "still3/kl_reset"]},
            "select questions": {"config": ["still3", "still3/select_questions"]},
            "select responses": {"config": ["still3", "still3/select_responses"]},
            "keep truncated": {"config": ["still3", "still3/keep_truncated"]},
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
        claims=(
            Claim(
                text="a reward for length makes completions longer",
                column="val length",
                sign=1,
                arm="still3 + length",
                against="still3",
            ),
            Claim(
                text="and fewer of them end",
                column="completion ratio",
                sign=-1,
                arm="still3 + length",
                against="still3",
            ),
            Claim(text="and answers worse", column="val pass@1", sign=-1, arm="still3 + length", against="still3"),
            Claim(text="large rollouts are better", column="val pass@1", sign=1, arm="large batch", against="still3"),
            Claim(
                text="several updates per rollout are worse",
                column="val pass@1",
                sign=-1,
                arm="off policy",
                against="still3",
            ),
            Claim(
                text="more completions per prompt are better",
                column="val pass@1",
                sign=1,
                arm="large group",
                against="still3",
            ),
            Claim(text="temperature 0.6 is worse than 1.0", column="val pass@1", sign=-1, arm="cool", against="still3"),
            Claim(text="temperature 1.2 is better than 1.0", column="val pass@1", sign=1, arm="hot", against="still3"),
            Claim(
                text="a fading KL penalty is better than a fixed one",
                column="val pass@1",
                sign=1,
                arm="still3",
                against="kl fixed",
            ),
        ),
    ),
)
