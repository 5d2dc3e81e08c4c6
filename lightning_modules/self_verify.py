"""Self-verification: one policy learns to solve and to judge what it has recently answered; its judgement weighs votes (arXiv 2506.01369).

A rollout has groups of two kinds. Solutions earn what `rewards` give; each becomes a question "is this right?" in a buffer. Verdicts on questions out
of the buffer earn `rewards.Verdict`. One GRPO update learns from both. At inference N solutions are judged, s = pi(Yes | question, reasoning), and
the answer with the largest sum of s^exponent is given.

    python main.py fit --config configs/self_verify.yaml
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules.self_verify import PROMPT, VerifyBuffer, check_prompt, verify_row
from lightning_modules.base import adamw
from lightning_modules.evaluation import Evaluation, evaluate
from lightning_modules.on_policy import OnPolicyModule, Rows
from lightning_modules.terms import KLPenalty, Shaping
from lightning_modules.verified_votes import vote_metrics, yes_probability
from objectives import Advantage, Aggregation, ClippedSurrogate, GroupNorm, PolicyLoss, TokenMean
from objectives.voting import weighted_vote
from policies import PolicyParams
from rewards import Reward
from rewards.answers import answers
from rewards.self_verify import Verdict
from rollouts import BatchPlan, Engine, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.processes import gathered
from support.seeding import isolated_rng, run_seed


@dataclass
class Verification:
    """How own solutions are judged.

    Args:
        share: of a rollout's prompts that are questions out of the buffer, once it holds enough; the paper does not state it.
        buffer_size, max_age: questions kept, and for how many rollouts (the paper's 7B: 5000 and 60; its 1.5B: 40000 and 60).
        prompt: the question; <problem> and <solution> (the answer without the reasoning) are replaced.
        scale: what a verdict's reward, less its group's mean, is divided by: nothing; the deviation of all verdicts of the rollout; or that of its group, as
            solutions are, which would cancel the weight that a whole group shares.
        exponent: of the score in votes, alpha in the paper (7B: 1; 1.5B: 0.1). form: s^exponent, or exp(exponent s).
        temperature: of verdicts at inference.
    """

    share: float = 0.5
    buffer_size: int = 5000
    max_age: int = 60
    prompt: str = PROMPT
    scale: Literal["none", "batch_std", "group_std"] = "none"
    exponent: float = 1.0
    form: Literal["power", "exponential"] = "power"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if not 0 <= self.share < 1 or self.exponent < 0 or self.temperature < 0:
            raise ConfigError(
                f"verification needs 0 <= share < 1, exponent >= 0 and temperature >= 0, got {self.share}, {self.exponent} and {self.temperature}."
            )


class SelfVerify(OnPolicyModule):
    """Solving and verifying in one policy; the defaults are the paper's for 7B.

    Args:
        policy: the model.
        rewards: what solutions earn, one of which judges correctness; a `rewards.Verdict` is added if there is none.
        verification: questions, buffer and votes.
        batch: 128 prompts of 8 completions, two updates. sampling: temperature 0.6, up to 2048 tokens.
        advantage: group z-score, of solutions. loss: clip 0.2. aggregation: the mean over all tokens.
        kl: 0.001 on k3 in the loss. evaluation: how validation samples; votes need several samples.
        engine, importance_cap, max_grad_norm, shaping: as in GRPO, with an entropy bonus of 0.001.
        optimizer, lr_scheduler: AdamW at 1e-6, constant.
    """

    equal_rewards_teach_nothing = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        verification: Verification | None = None,
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
        shaping: Shaping | None = None,
    ) -> None:
        if not any(reward.is_correctness for reward in rewards):
            raise ConfigError(
                f"SelfVerify needs a reward that judges correctness, such as rewards.ExactAnswer; model.rewards has {[r.name for r in rewards]}."
            )
        if not any(isinstance(reward, Verdict) for reward in rewards):
            rewards = [*rewards, Verdict()]
        super().__init__(
            policy,
            batch or BatchPlan(prompts_per_rollout=128, group_size=8, updates_per_rollout=2),
            sampling or SamplingParams(max_new_tokens=2048, temperature=0.6),
            rewards,
            advantage or GroupNorm(),
            loss or ClippedSurrogate(),
            aggregation or TokenMean(),
            kl or KLPenalty(coefficient=0.001),
            evaluation,
            engine,
            importance_cap,
            optimizer,
            lr_scheduler,
            max_grad_norm,
            shaping or Shaping(entropy_bonus=0.001),
        )
        self.verification = verification or Verification()
        self.judge = next(reward for reward in rewards if reward.is_correctness)
        self.verdict = next(reward for reward in rewards if isinstance(reward, Verdict))
        self.buffer = VerifyBuffer(self.verification.buffer_size, self.verification.max_age)
        self.verdict_advantage = GroupNorm(self.verification.scale)
        self.votes: list[dict[str, Any]] = []  # of this evaluation, one a problem

    # ---- rollouts of two kinds ----------------------------------------------------------------------------------------------

    def training_step(self, rows: Rows, batch_idx: int) -> None:
        super().training_step(self.mixed(rows), batch_idx)

    def mixed(self, rows: Rows) -> Rows:
        """Some of the prompts replaced by questions out of the buffer, every process by its own part of one draw, in a random order."""
        own, processes, rank = round(self.verification.share * len(rows)), self.trainer.world_size, self.global_rank
        drawn = self.buffer.draw(own * processes, run_seed(), self.rollouts_done)[rank * own : (rank + 1) * own]
        both = drawn + rows[len(drawn) :]
        # The updates of a rollout take its prompts in their order: each is to have both kinds.
        with isolated_rng("mixed prompts", run_seed(), rank, self.rollouts_done):
            return [both[i] for i in torch.randperm(len(both)).tolist()]

    def questions(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """Which rows are verdicts."""
        return torch.tensor([correct is not None for correct in batch.column("solution_correct")], device=batch.completion_ids.device)

    def score(self, batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
        verdicts = self.questions(batch)
        found = super().score(batch)
        return {name: scores if name == self.verdict.name else scores.masked_fill(verdicts, torch.nan) for name, scores in found.items()}

    def advantages(self, batch: RolloutBatch) -> Float[Tensor, "rows"] | Float[Tensor, "rows time"]:
        advantages, verdicts = super().advantages(batch), self.questions(batch)
        alone = self.returns(batch).masked_fill(~verdicts, torch.nan)
        judged = self.verdict_advantage(alone, batch.groups, batch.completion_ids, batch.action_mask)
        if advantages.dim() == 2:
            verdicts, judged = verdicts[:, None], judged[:, None]
        return torch.where(verdicts, judged, advantages)

    def update(self, batch: RolloutBatch) -> dict[str, float]:
        metrics = super().update(batch)
        self.remember(batch)
        held = self.buffer.rows
        metrics |= {"buffer": float(len(held))}
        if held:
            metrics["buffer_correct"] = sum(row["solution_correct"] for row in held) / len(held)
            metrics["buffer_age"] = sum(self.rollouts_done - row["rollout"] for row in held) / len(held)
        if (asked := self.questions(batch)).any():
            verdicts = [
                (v, c) for v, c in zip(self.verdict.verdicts(batch), batch.column("solution_correct"), strict=True) if c is not None
            ]
            metrics["verify_accuracy"] = sum(v is c for v, c in verdicts) / len(verdicts)
            metrics["yes_rate"] = sum(v is True for v, _ in verdicts) / len(verdicts)
            metrics["questions"] = float(asked.float().mean())
        return metrics

    def remember(self, batch: RolloutBatch) -> None:
        """Put the solutions of a rollout, of all processes, into the buffer with the truth about them; those without an answer pose no question."""
        scores, size = self.judge.unscaled(batch.rewards[self.judge.name], batch).tolist(), batch.group_size
        rows, solutions = [row for row in batch.rows for _ in range(size)], answers(batch)
        asked = [
            row.get("solution_correct") is None and bool(solution) and not math.isnan(score)
            for row, solution, score in zip(rows, solutions, scores, strict=True)
        ]
        own = []
        for start in range(0, len(rows), size):
            places = [i for i in range(start, start + size) if asked[i]]
            # Counted are the questions that are asked, so that a perfect verifier earns 1 on average.
            truth = {"group_correct": sum(scores[i] >= 1 for i in places), "group_size": len(places)}
            for i in places:
                question = verify_row(rows[i], solutions[i], self.verification.prompt)
                own.append(question | {"solution_correct": scores[i] >= 1} | truth)
        self.buffer.add([row for part in gathered(own) for row in part], self.rollouts_done)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.verdict_advantage.reduce = self.summed

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["verify_buffer"] = self.buffer.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.buffer.rows = checkpoint["verify_buffer"]

    # ---- inference: votes weighted by the policy's own verdicts -------------------------------------------------------------

    def judged(self, batch: RolloutBatch) -> tuple[RolloutBatch, Float[Tensor, "rows"]]:
        """(the verdicts on all solutions of a batch, s = pi(Yes) behind each one's reasoning)."""
        asked = [verify_row(batch.rows[i // batch.group_size], text, self.verification.prompt) for i, text in enumerate(answers(batch))]
        sampling = replace(self.evaluation.sampling or self.sampling, temperature=self.verification.temperature)
        verdicts = self.sample(asked, 1, sampling)
        return verdicts, yes_probability(self.policy, verdicts)

    def vote(self, batch: RolloutBatch, scores: Float[Tensor, "rows"], exponent: float) -> list[int]:
        """The row that each problem's vote chooses; completions vote together if their answers are equivalent."""
        texts, values, size, form = (
            self.judge.extracted(batch),
            scores.tolist(),
            batch.group_size,
            self.verification.form,
        )
        starts = range(0, len(texts), size)
        return [at + weighted_vote(texts[at : at + size], values[at : at + size], exponent, form) for at in starts]

    def _evaluate_votes(self, batch: RolloutBatch, batch_idx: int) -> None:
        with isolated_rng("verdicts", run_seed(), self.global_rank, batch_idx):
            verdicts, scores = self.judged(batch)
        right = (self.judge.unscaled(batch.rewards[self.judge.name], batch) >= 1).tolist()
        said, size = self.verdict.verdicts(verdicts), batch.group_size
        weighted, majority = self.vote(batch, scores, self.verification.exponent), self.vote(batch, scores, 0.0)
        for i, (ours, theirs) in enumerate(zip(weighted, majority, strict=True)):
            pairs = list(zip(said[i * size : (i + 1) * size], right[i * size : (i + 1) * size], strict=True))
            self.votes.append({"vote": right[ours], "majority": right[theirs], "pairs": pairs})

    def _log_votes(self, stage: str) -> None:
        found = [vote for part in gathered(self.votes) for vote in part]
        self.votes = []
        for name, value in vote_metrics(found).items():
            self.log(f"{stage}/{name}", value)  # equal on all processes already

    def validation_step(self, rows: Rows, batch_idx: int) -> None:
        super().validation_step(rows, batch_idx)
        self._evaluate_votes(self.last_validation[-1], batch_idx)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_votes("val")

    def test_step(self, rows: Rows, batch_idx: int) -> None:
        self._evaluate_votes(evaluate(self, rows, batch_idx, "test"), batch_idx)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._log_votes("test")

    def predict_step(self, rows: Rows, batch_idx: int) -> list[dict[str, Any]]:
        """Prompts with the completion that the weighted vote chooses, and the policy's trust in it."""
        with isolated_rng("predict", run_seed(), self.global_rank, batch_idx):
            batch = self.sample(rows, self.evaluation.samples, self.evaluation.sampling or self.sampling)
            _, scores = self.judged(batch)
        chosen = zip(rows, self.vote(batch, scores, self.verification.exponent), strict=True)
        return [
            {"id": row["id"], "prompt": row["prompt"], "completion": batch.completions[i], "score": float(scores[i])} for row, i in chosen
        ]
