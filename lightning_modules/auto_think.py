"""AutoThink: a reasoner that tosses a coin between thinking and answering at once learns which of the two a problem needs.

Tu et al. (arXiv 2505.10832): an ellipsis behind <think> makes both modes appear; three stages of GRPO with rewards by mode then
(1) keep both alive, (2) learn to answer right, (3) shorten. Eqs. 2 to 6 are in objectives/thinking.py.

    python main.py fit --config configs/auto_think.yaml
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from lightning_modules.base import adamw
from lightning_modules.effect import EffectWatch
from lightning_modules.evaluation import Evaluation
from lightning_modules.on_policy import OnPolicyModule
from lightning_modules.terms import KLPenalty
from objectives import Advantage, Aggregation, ClippedSurrogate, GroupNorm, PolicyLoss, TokenMean
from objectives.statistics import group_statistics
from objectives.thinking import balance_penalties, balanced_reward, length_shaped, naive_reward
from policies import PolicyParams
from rewards import Reward
from rewards.answers import answers
from rollouts import BatchPlan, Engine, Mode, RolloutBatch, SamplingParams, needs_thinking
from support.errors import ConfigError


@dataclass
class ModeRewards:
    """The numbers in AutoThink's reward tables.

    Args:
        gamma: stage 1: share of a mode from which its reward is pulled down. slope: how fast (the paper's lambda).
        alpha, beta: stage 3: strength of shaping by length, of correct and of wrong completions.
        unparsed_no_thinking: reward for answering at once with no answer at all: 0 in the official code, -1 closes that gap.
    """

    gamma: float = 0.5
    slope: float = 2.0
    alpha: float = 0.05
    beta: float = 0.05
    unparsed_no_thinking: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1 or min(self.slope, self.alpha, self.beta) < 0:
            raise ConfigError(
                f"mode_rewards: needs gamma from 0 to 1 and slope, alpha and beta of 0 or above, got {self.gamma}, {self.slope}, {self.alpha} and {self.beta}."
            )


class AutoThink(OnPolicyModule):
    """AutoThink; the defaults are the paper's first stage. A callbacks.StageSchedule moves `stage` on, or three runs follow one another.

    Args:
        policy: a model whose chat template knows <think> ... </think>, and which under the ellipsis shows both modes.
        rewards: one of them says whether the answer is correct; the others are added to the mode's reward as they are.
        stage: 1 keeps both modes alive, 2 is the plain table, 3 shortens.
        mode_rewards: the numbers of the tables.
        ellipsis: what stands behind <think> in every prompt.
        batch: 128 prompts x 8 completions (64 from stage 2 on). sampling: temperature 0.6.
        advantage, loss, aggregation: GRPO's z-score, clip 0.2, mean over all tokens.
        kl: none. evaluation, engine, importance_cap, max_grad_norm: as in GRPO.
        optimizer, lr_scheduler: AdamW at 1e-6, constant.
    """

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        stage: Literal[1, 2, 3] = 1,
        mode_rewards: ModeRewards | None = None,
        ellipsis: str = "\n...\n",
        batch: BatchPlan | None = None,
        sampling: SamplingParams | None = None,
        advantage: Advantage | None = None,
        loss: PolicyLoss | None = None,
        aggregation: Aggregation | None = None,
        kl: KLPenalty | None = None,
        evaluation: Evaluation | None = None,
        engine: Engine | None = None,
        importance_cap: float | None = 2.0,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if not any(reward.is_correctness for reward in rewards):
            raise ConfigError(
                "AutoThink rewards right and wrong answers by mode, but none of model.rewards says what is right; list one such as rewards.ExactAnswer."
            )
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=128, group_size=8),
            sampling or SamplingParams(max_new_tokens=8192, temperature=0.6),
            rewards,
            advantage or GroupNorm(),
            loss or ClippedSurrogate(),
            aggregation or TokenMean(),
            kl or KLPenalty(),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
        )
        self.stage, self.mode_rewards, self.ellipsis = stage, mode_rewards or ModeRewards(), ellipsis
        self.judge = next(reward for reward in rewards if reward.is_correctness)
        self.effect = EffectWatch()
        self.shown: dict[str, float] = {}

    def configure_model(self) -> None:
        super().configure_model()
        self.form = needs_thinking(self.policy, "AutoThink")

    def prompt_tokens(self, row: dict[str, Any]) -> list[int]:
        return self.form.prompt_tokens(row["prompt"], after=self.ellipsis)

    def returns(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The reward table of the stage, on top of whatever the other rewards say."""
        table, modes = self.mode_rewards, self.form.modes(batch)
        # What never leaves its block has thought, and has no answer.
        thinking, closed = modes != Mode.NO_THINKING, modes != Mode.UNCLOSED
        correct = (self.judge.unscaled(batch.rewards[self.judge.name], batch) >= 1) & closed
        parsed = closed & torch.tensor([bool(text) for text in answers(batch)], device=self.device)
        others = super().returns(batch) - self.judge.weight * batch.rewards[self.judge.name]
        reward = naive_reward(correct, thinking, parsed, table.unparsed_no_thinking)
        before = group_statistics(reward, batch.groups)[1].mean()
        share = self.thinking_share(thinking)
        if self.stage == 3:
            reward = length_shaped(reward, correct, batch.lengths, batch.groups, table.alpha, table.beta)
        if self.stage == 1:
            reward = balanced_reward(reward, correct, thinking, share, table.gamma, table.slope)
        self._note(batch, modes, correct, share)
        self.shown |= {
            "reward_std_naive": float(before),
            "reward_std_shaped": float(group_statistics(reward, batch.groups)[1].mean()),
            "reward_shaped": float(reward.mean()),
        }
        return reward + others

    def thinking_share(self, thinking: Tensor) -> float:
        """z: over the rollout's completions on all processes."""
        count = self.summed(torch.tensor([float(thinking.sum()), float(len(thinking))]))
        return float(count[0] / count[1])

    def _note(self, batch: RolloutBatch, modes: Tensor, correct: Tensor, share: float) -> None:
        table, lengths = self.mode_rewards, batch.lengths.float()
        penalties = balance_penalties(share, table.gamma, table.slope) if self.stage == 1 else (0.0, 0.0)
        self.shown = {
            "stage": float(self.stage),
            "thinking_rate": share,
            "unclosed_rate": float((modes == Mode.UNCLOSED).float().mean()),
            "balance_thinking": penalties[0],
            "balance_no_thinking": penalties[1],
        }
        for name, rows in (("no_thinking", modes == Mode.NO_THINKING), ("thinking", modes != Mode.NO_THINKING)):
            seen = bool(rows.any())
            self.shown[f"accuracy/{name}"] = float(correct[rows].float().mean()) if seen else 0.0
            self.shown[f"length/{name}"] = float(lengths[rows].mean()) if seen else 0.0
        why = "all completions were of one mode, so there is nothing to choose from: start from a model that shows both under the ellipsis (a short SFT, see docs/auto_think.md), or lower gamma."
        self.effect.see("modes", 0 < share < 1, why)

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        return super().update(batch) | self.shown
