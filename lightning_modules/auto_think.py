"""AutoThink: a reasoning model with two modes, thinking and answering at once, learns which one a problem needs.

Tu et al. (arXiv 2505.10832): an ellipsis after <think> makes both modes appear. Three stages of GRPO with rewards by
mode then (1) keep both modes alive, (2) raise the accuracy, (3) shorten. Eqs. 2 to 6 are in objectives/thinking.py.

    python main.py fit --config configs/auto_think.yaml
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_modules.core.effect_watch import EffectWatch
from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.terms import Shaping
from objectives import Aggregation, TokenMean
from objectives.statistics import group_statistics
from objectives.thinking import balance_penalties, balanced_reward, length_shaped, naive_reward
from policies import PolicyParams
from rewards import Reward
from rollouts import BatchPlan, Mode, RolloutBatch, SamplingOverrides, SamplingParams, needs_thinking
from support.errors import ConfigError
from support.papers import Paper
from support.processes import means, summed


@dataclass
class ModeRewards:
    """The numbers in AutoThink's reward tables.

    Args:
        gamma: stage 1: fraction of a mode above which its reward is lowered.
        slope: stage 1: slope of that penalty (the paper's lambda).
        alpha, beta: stage 3: strength of shaping by length for correct and for wrong completions.
        unparsed_no_thinking: reward for answering at once without an answer that can be extracted: 0 in the official
            code, which is more than a wrong answer earns; -1 makes both equal.
        answer: text that is graded if a completion writes </think> several times: after the last one, or between the
            first and the second (the official code).
    """

    gamma: float = 0.5
    slope: float = 2.0
    alpha: float = 0.05
    beta: float = 0.05
    unparsed_no_thinking: float = 0.0
    answer: Literal["last", "first"] = "last"

    def __post_init__(self) -> None:
        if self.answer not in ("last", "first"):
            raise ConfigError(f"model.mode_rewards.answer is {self.answer!r}; set it to 'last' or 'first'.")
        if not 0 <= self.gamma <= 1 or min(self.slope, self.alpha, self.beta) < 0:
            raise ConfigError(
                "model.mode_rewards needs gamma from 0 to 1 and slope, alpha and beta of 0 or more, got "
                f"{self.gamma}, {self.slope}, {self.alpha} and {self.beta}."
            )


@dataclass
class ModeCounts:
    """Inputs of the reward tables for one rollout.

    Fields:
        modes: mode of every row.
        correct: rows that closed their think block and are right.
        parsed: rows that closed their think block and give an answer that the judge can extract.
        unknown: rows that could not be judged.
        thinking_fraction: z, over the rollout's completions on all processes.
    """

    modes: Tensor
    correct: Bool[Tensor, "rows"]
    parsed: Bool[Tensor, "rows"]
    unknown: Bool[Tensor, "rows"]
    thinking_fraction: float

    @property
    def thinking(self) -> Bool[Tensor, "rows"]:
        """Rows that think, including those that never close their think block."""
        return self.modes != Mode.NO_THINKING


class AutoThink(OnPolicyModule):
    """AutoThink; the defaults are the paper's first stage and its official code's.

    callbacks.StageSchedule advances `stage`, or each stage is a run of its own (configs/auto_think/). The module
    overrides the hooks `prompt_tokens` (the ellipsis), `score` (the text that is graded if a block is closed several
    times), `returns` (the tables), `metrics` and `observe`;
    `configure_model` finds the think block.

    Args:
        policy: a model whose chat template knows <think> ... </think>, and which shows both modes after the ellipsis.
        rewards: one of them judges correctness; the others are added to the mode's reward unchanged.
        stage: 1 keeps both modes alive, 2 uses the plain table, 3 shortens.
        mode_rewards: numbers of the reward tables.
        ellipsis: text after <think> in every prompt.
        batch: 128 prompts x 8 completions, two updates of 64 prompts (64 prompts and one update from stage 2 on).
        sampling: temperature 0.6, up to 8,192 tokens (16,384 and 24,576 in stages 2 and 3).
        aggregation: the mean over all tokens.
        evaluation: temperature 0.6 and top-p 0.95 (the paper's benchmarks: 16 samples of up to 32,768 tokens).
        shaping: entropy bonus 0.001 (the official code's).
        kwargs: group z-score, clip 0.2, no KL, AdamW at 1e-6; see OnPolicyModule.
    """

    zero_variance_groups_have_no_gradient = False  # the tables give equal rewards different values
    needs_correctness = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        stage: Literal[1, 2, 3] = 1,
        mode_rewards: ModeRewards = ModeRewards(),
        ellipsis: str = "\n...\n",
        batch: BatchPlan = BatchPlan(128, 8, updates_per_rollout=2),
        sampling: SamplingParams = SamplingParams(max_new_tokens=8192, temperature=0.6),
        aggregation: Aggregation = TokenMean(),
        evaluation: Evaluation = Evaluation(sampling=SamplingOverrides(temperature=0.6, top_p=0.95)),
        shaping: Shaping = Shaping(entropy_bonus=0.001),
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            rewards,
            batch=batch,
            sampling=sampling,
            aggregation=aggregation,
            evaluation=evaluation,
            shaping=shaping,
            **kwargs,
        )
        self.stage, self.mode_rewards, self.ellipsis = stage, copy.deepcopy(mode_rewards), ellipsis
        self.judge = next(reward for reward in self.rewards if reward.is_correctness)
        self.effect = EffectWatch()

    def configure_model(self) -> None:
        super().configure_model()
        self.form = needs_thinking(self.policy, "AutoThink")

    def prompt_tokens(self, row: dict[str, Any]) -> list[int]:
        return self.form.prompt_tokens(row["prompt"], after=self.ellipsis)

    # ---- the reward tables -------------------------------------------------------------------------------------------

    def mode_counts(self, batch: RolloutBatch) -> ModeCounts:
        """Modes, answers and their correctness. All processes take part."""
        modes = self.form.modes(batch)
        closed, thinking = modes != Mode.UNCLOSED, modes != Mode.NO_THINKING
        extracted = self.judge.extracted(self._graded(batch))
        parsed = closed & torch.tensor([bool(text) for text in extracted], device=modes.device)
        scores = self.judge.unscaled(batch.rewards[self.judge.name].to(modes.device), batch)
        correct = (scores >= 1) & closed
        count = summed(torch.tensor([float(thinking.sum()), float(len(thinking))]))
        return ModeCounts(modes, correct, parsed, scores.isnan(), float(count[0] / count[1]))

    def _graded(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch with the texts that are graded; it shares the scores with the batch itself."""
        if self.mode_rewards.answer == "last":
            return batch
        return replace(batch, _completions=["</think>".join(text.split("</think>")[:2]) for text in batch.completions])

    def score(self, batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
        if self.judge.name not in batch.rewards:
            batch.rewards[self.judge.name] = self.judge(self._graded(batch))
        return super().score(batch)

    def mode_rewards_of(self, batch: RolloutBatch, counts: ModeCounts) -> tuple[Tensor, Tensor]:
        """(rewards of the plain table, rewards of the stage), each (rows,)."""
        table = self.mode_rewards
        naive = naive_reward(counts.correct, counts.thinking, counts.parsed, table.unparsed_no_thinking)
        reward = naive
        if self.stage == 3:
            lengths = batch.lengths.float().masked_fill(counts.unknown, torch.nan)  # no part of the means
            reward = length_shaped(reward, counts.correct, lengths, batch.groups, table.alpha, table.beta)
        if self.stage == 1:
            fraction = counts.thinking_fraction
            reward = balanced_reward(reward, counts.correct, counts.thinking, fraction, table.gamma, table.slope)
        return naive, reward

    def returns(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        others = super().returns(batch) - self.judge.weight * batch.rewards[self.judge.name]
        return self.mode_rewards_of(batch, self.mode_counts(batch))[1] + others

    # ---- telemetry ---------------------------------------------------------------------------------------------------

    def observe(self, batch: RolloutBatch) -> None:
        self.effect.see(
            "modes",
            0 < self.mode_counts(batch).thinking_fraction < 1,
            "all completions had the same mode, so the policy has no choice to learn. Start from a model that shows "
            "both modes after the ellipsis (a short SFT, see docs/auto_think.md), or lower model.mode_rewards.gamma.",
        )

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        counts, table, lengths = self.mode_counts(batch), self.mode_rewards, batch.lengths.float()
        naive, shaped = (
            values.masked_fill(counts.unknown, torch.nan) for values in self.mode_rewards_of(batch, counts)
        )
        penalties = (0.0, 0.0)
        if self.stage == 1:
            penalties = balance_penalties(counts.thinking_fraction, table.gamma, table.slope)
        rows = {
            "unclosed_rate": counts.modes == Mode.UNCLOSED,
            "reward_std_naive": group_statistics(naive, batch.groups)[1],
            "reward_std_shaped": group_statistics(shaped, batch.groups)[1],
            "reward_shaped": shaped,
        }
        for name, of_mode in (("no_thinking", ~counts.thinking), ("thinking", counts.thinking)):
            rows[f"accuracy/{name}"] = counts.correct[of_mode & ~counts.unknown]
            rows[f"length/{name}"] = lengths[of_mode]
        return (
            dict.fromkeys(rows, 0.0)
            | means(rows)
            | {
                "stage": float(self.stage),
                "thinking_rate": counts.thinking_fraction,
                "balance_thinking": penalties[0],
                "balance_no_thinking": penalties[1],
            }
        )


PAPER = Paper(
    name="auto_think",
    title="AutoThink",
    arxiv="2505.10832",
    idea="two modes and three stages: keep both modes alive, learn to answer right, shorten",
    classes=("lightning_modules.AutoThink", "callbacks.StageSchedule"),
    configs=("auto_think",),
    effect="0.57 → 0.86 with 50 % fewer tokens than always thinking",
    # The stages begin at a quarter and at three quarters of the default budget, as in the paper's own configuration.
    comparison={
        "trainer.callbacks": [
            {
                "class_path": "callbacks.StageSchedule",
                "init_args": {
                    "stages": [
                        {"from_rollout": 0, "set": {"stage": 1}, "lr": 1e-4},
                        {"from_rollout": 17, "set": {"stage": 2}, "lr": 1e-4},
                        {"from_rollout": 51, "set": {"stage": 3}, "lr": 1e-4},
                    ]
                },
            }
        ]
    },
)
