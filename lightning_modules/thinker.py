"""Thinker: one question becomes four turns, each with a reward of its own.

Thinker: Learning to Think Fast and Slow (arXiv 2505.21097). The policy answers fast, verifies its answer, thinks slowly
if the answer is wrong, and summarises a right slow answer. The tokens of a turn learn from that turn's reward alone:
A_t = A(R_k) for the tokens t of turn k. `environments.ThinkerDialogue` leads the dialogue, rewards/thinker.py has the
rewards.

    python main.py fit --config configs/thinker.yaml
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from environments.thinker import NAMES, SUMMARY, VERIFY, ThinkerDialogue
from lightning_modules.core.data_checks import check_golds, data_splits
from lightning_modules.core.loader_metrics import loader_means
from lightning_modules.core.micro_batches import batch_logprobs
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.sampling_module import Rows
from lightning_modules.core.terms import Shaping
from policies import PolicyParams
from rewards import BalancedVerdict, FinalAnswer, LikelySummary, Reward, TurnReward
from rewards.turn_rewards import turns_of
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import means


class Thinker(OnPolicyModule):
    """The dialogue of four turns. In training the truth decides which turn follows, in evaluations the verdict.

    Args:
        policy: the model.
        rewards: further rewards, which belong to the last turn. The paper's that are missing are put before them:
            `TurnReward` of the turns 0 (fast), 2 (slow) and 3 (summary), `BalancedVerdict` (verify), `LikelySummary`
            (k = 1e-3) and `FinalAnswer`, of weight 0.
        environment: the dialogue, with the judge of answers and the budgets of turns.
        batch: 16 prompts x 8 completions; the paper's PPO has no groups.
        sampling: 16,000 tokens, which hold all turns and the user's messages.
        shaping: credit by turn.
        kwargs: the advantage, per turn: a group z-score by default, whose baseline of the k-th turn is that of the k-th
            turns of the same prompt; see OnPolicyModule.
    """

    environment: ThinkerDialogue

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        environment: ThinkerDialogue = ThinkerDialogue(),
        batch: BatchPlan = BatchPlan(prompts_per_rollout=16, group_size=8),
        sampling: SamplingParams = SamplingParams(max_new_tokens=16_000),
        shaping: Shaping = Shaping(credit="turn"),
        **kwargs: Any,
    ) -> None:
        if not isinstance(environment, ThinkerDialogue):
            raise ConfigError(
                f"Thinker: environment is {type(environment).__name__}; its rewards belong to the turns of "
                "environments.ThinkerDialogue, so use that or a subclass."
            )
        paper: list[Reward] = [
            TurnReward(0, name="fast"),
            BalancedVerdict(),
            TurnReward(2, name="slow"),
            TurnReward(3, name="summary"),
            LikelySummary(),
            FinalAnswer(),
        ]
        names = {getattr(reward, "name", "") for reward in rewards}
        super().__init__(
            policy,
            [*(reward for reward in paper if reward.name not in names), *rewards],
            environment=copy.deepcopy(environment),
            batch=batch,
            sampling=sampling,
            shaping=shaping,
            **kwargs,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        splits = data_splits(self.trainer, stage)
        if stage != "predict":
            for row in (row for rows in splits.values() for row in rows):
                self.environment.judge.check_columns(row)
            check_golds(splits, [self.environment.judge])

    def score(self, batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
        for reward in self.rewards:
            if isinstance(reward, LikelySummary) and reward.name not in batch.rewards:
                right = turns_of(reward, batch).rewards_of(SUMMARY)
                likelihood = self.summary_logprobs(batch) if reward.weight else torch.zeros_like(right)
                batch.rewards[reward.name] = torch.where(right == 0, right, likelihood).masked_fill(
                    right.isnan(), torch.nan
                )
        return super().score(batch)

    def summary_logprobs(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """log pi(summary | prompt of the fast turn), summed over the summary's tokens; 0 for rows without one."""
        summaries, has_summary = batch.of_turn(SUMMARY)
        logprobs = batch_logprobs(self.policy, summaries, self.temperature, self.update_token_budget)
        return logprobs.sum(1) * has_summary

    # ---- metrics and evaluation --------------------------------------------------------------------------------------

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        return _balanced(means(turn_values(batch)))

    @contextlib.contextmanager
    def transitions_by_verdict(self) -> Iterator[None]:
        """Let the model's verdicts decide, as at inference."""
        environment = self.environment
        self.environment = copy.copy(environment)
        self.environment.transition = "verdict"
        try:
            yield
        finally:
            self.environment = environment

    def evaluate(self, rows: Rows, stage: str, loader: int = 0) -> RolloutBatch:
        with self.transitions_by_verdict():
            batch = super().evaluate(rows, stage, loader)
        for name, values in turn_values(batch).items():
            self.row_values[loader, name].append(values)
        return batch

    def end_evaluation(self, stage: str) -> None:
        super().end_evaluation(stage)
        rates = {key: values for key, values in self.row_values.items() if key[1] in ("verify_tpr", "verify_tnr")}
        for name, value in _balanced(loader_means(rates)).items():
            if name.startswith("verify_balanced"):
                self.log(f"{stage}/{name}", value, sync_dist=True, add_dataloader_idx=False)

    def predict_step(self, rows: Rows, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        with self.transitions_by_verdict():
            return super().predict_step(rows, batch_idx, dataloader_idx)


def turn_values(batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
    """Numbers of each turn by row, NaN where a row lacks the turn: accuracy, length, truncation; and of verdicts."""
    assert batch.turns is not None
    turns, values = batch.turns, {}
    grades = {name: turns.rewards_of(turn) for turn, name in enumerate(NAMES)}
    for turn, name in enumerate(NAMES):
        there = turns.counts > turn
        reasons = [row[turn] == "length" if turn < len(row) else False for row in turns.finish_reasons]
        truncated = torch.tensor(reasons, device=there.device).float()
        values[f"{name}_accuracy"] = grades[name]
        values[f"{name}_length"] = turns.lengths(turn).float().masked_fill(~there, torch.nan)
        values[f"{name}_truncated"] = truncated.masked_fill(~there, torch.nan)
        if turn > VERIFY:
            values[f"reached_{name}"] = there.float()
    values["verify_tpr"] = grades["verify"].masked_fill(grades["fast"] != 1, torch.nan)
    values["verify_tnr"] = grades["verify"].masked_fill(grades["fast"] != 0, torch.nan)
    return values


def _balanced(means_of: dict[str, float]) -> dict[str, float]:
    """The numbers with the mean of TPR and TNR, of every loader that has both."""
    pairs = {name: name.replace("verify_tpr", "verify_tnr") for name in means_of if name.startswith("verify_tpr")}
    return means_of | {
        tpr.replace("verify_tpr", "verify_balanced"): (means_of[tpr] + means_of[tnr]) / 2
        for tpr, tnr in pairs.items()
        if tnr in means_of
    }


PAPER = Paper(
    name="thinker",
    title="Thinker",
    arxiv="2505.21097",
    idea="four turns with a reward each: a fast answer, its verification, a slow answer, a summary",
    classes=("lightning_modules.Thinker", "environments.ThinkerDialogue", "rewards.BalancedVerdict"),
    configs=("thinker",),
    effect="",
    not_compared="its start must know the four turns, and a budget of tokens buys it a quarter as many problems",
    experiment=Experiment(
        rollouts=30,
        arms={
            "thinker": {},
            "grpo": {
                "model": "lightning_modules.GRPO",
                "model.environment": None,
                "model.rewards": [{"class_path": "rewards.ExactAnswer"}],
                "model.shaping.credit": "completion",
                "model.sampling.max_new_tokens": 66,
                "model.batch.group_size": 8,
            },
        },
        columns={
            "val pass@1": "val/pass1",
            "fast turn": "val/fast_accuracy",
            "slow turn": "val/slow_accuracy",
            "balanced accuracy of verdicts": "val/verify_balanced",
            "val length": "val/length",
        },
        expect="The fast turn's accuracy rises under its small budget, the balanced accuracy of verdicts is above 0.6, "
        "and the final answer is right more often than the fast one.",
        validate_every=10,
        claims=(
            Claim(text="the fast answer becomes better", column="fast turn", sign=1, against="start"),
            Claim(text="verdicts are better than chance", column="balanced accuracy of verdicts", sign=1, against=0.6),
            Claim(
                text="the final answer is better than the fast one",
                column="val pass@1",
                sign=1,
                against="thinker",
                against_column="fast turn",
            ),
        ),
    ),
)
