"""Self-verification: one policy learns to solve and to judge its recent answers; its judgements weigh votes.

Incentivizing LLMs to Self-Verify Their Answers (arXiv 2506.01369). A rollout has groups of two kinds. Solutions are
scored by `rewards`; each becomes a question "is this right?" in a buffer. Verdicts on questions from the buffer are
scored by `rewards.Verdict`. One GRPO update learns from both. At inference the policy judges N solutions, s = pi(Yes |
question, reasoning), and returns the answer with the largest sum of s^exponent.

    python main.py fit --config configs/self_verify.yaml
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from datamodules.self_verify import PROMPT, VerifyBuffer, check_prompt, verify_row
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.sampling_module import Rows
from lightning_modules.core.terms import KLPenalty, Shaping
from lightning_modules.core.verified_votes import vote_metrics, yes_probability
from objectives import Aggregation, GroupNorm, TokenMean
from objectives.voting import weighted_vote
from policies import PolicyParams
from rewards import Reward
from rewards.answers import answers
from rewards.self_verify import Verdict
from rollouts import BatchPlan, RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import gathered, in_one_order, means, part_of_process, summed
from support.seeding import isolated_rng, run_seed


@dataclass
class Verification:
    """Settings of the verification: questions, buffer and votes.

    Args:
        share: fraction of a rollout's prompts that are questions from the buffer, once it contains enough; the paper
            does not state it.
        buffer_size: maximum number of questions in the buffer (the paper's 7B: 5000; its 1.5B: 40000).
        max_age: number of rollouts that a question stays in the buffer (60 in the paper).
        prompt: text of a question; <problem> and <solution> (the answer without the reasoning) are replaced.
        scale: divisor of a verdict's reward after its group's mean is subtracted: none; batch_std, the deviation of all
            verdicts of the rollout; or group_std, that of its group, as for solutions, which would cancel the weight
            that all verdicts of a group have in common.
        exponent: exponent of the score in votes, alpha in the paper (7B: 1; 1.5B: 0.1).
        form: weight of a vote: power is s^exponent, exponential is exp(exponent s).
        temperature: temperature of verdicts at inference.
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
                "model.verification needs 0 <= share < 1, exponent >= 0 and temperature >= 0, got "
                f"{self.share}, {self.exponent} and {self.temperature}."
            )


class SelfVerify(OnPolicyModule):
    """Solving and verifying in one policy; the defaults are the paper's for 7B.

    `prompts` adds the questions to a rollout, `score` and `advantages` treat solutions and verdicts separately,
    `observe` fills the buffer, `metrics` reports on it, `evaluate` and `end_evaluation` add the votes.

    Args:
        policy: the model.
        rewards: rewards of solutions, one of which judges correctness; a missing `rewards.Verdict` is added.
        verification: questions, buffer and votes.
        batch: 128 prompts x 8 completions, two updates.
        sampling: temperature 0.6, up to 2,048 tokens.
        aggregation: the mean over all tokens.
        kl: 0.001 on k3 in the loss.
        shaping: entropy bonus 0.001.
        kwargs: group z-score for solutions, clip 0.2, AdamW at 1e-6; votes need several samples in `evaluation`; see
            OnPolicyModule.
    """

    needs_correctness = True

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        verification: Verification = Verification(),
        batch: BatchPlan = BatchPlan(prompts_per_rollout=128, group_size=8, updates_per_rollout=2),
        sampling: SamplingParams = SamplingParams(max_new_tokens=2048, temperature=0.6),
        aggregation: Aggregation = TokenMean(),
        kl: KLPenalty = KLPenalty(coefficient=0.001),
        shaping: Shaping = Shaping(entropy_bonus=0.001),
        **kwargs: Any,
    ) -> None:
        if not any(isinstance(reward, Verdict) for reward in rewards):
            rewards = [*rewards, Verdict()]
        super().__init__(
            policy, rewards, batch=batch, sampling=sampling, aggregation=aggregation, kl=kl, shaping=shaping, **kwargs
        )
        self.verification = copy.deepcopy(verification)
        self.judge = next(reward for reward in self.rewards if reward.is_correctness)
        self.verdict = next(reward for reward in self.rewards if isinstance(reward, Verdict))
        self.buffer = VerifyBuffer(self.verification.buffer_size, self.verification.max_age)
        self.verdict_advantage = GroupNorm(self.verification.scale)
        self.votes: list[dict[str, Any]] = []  # of the current evaluation, one per problem

    # ---- rollouts of solutions and verdicts --------------------------------------------------------------------------

    def prompts(self, rows: Rows) -> Rows:
        """Replace some of the prompts by questions from the buffer, in a random order.

        All processes mix the whole rollout alike, and each takes its own part.
        """
        updates = self.batch.updates_per_rollout
        whole = in_one_order(gathered(rows), updates)
        questions = self.buffer.draw(round(self.verification.share * len(whole)), run_seed(), self.rollouts_done)
        mixed = questions + whole[len(questions) :]
        # The updates of a rollout take its prompts in this order; after the shuffle each update has both kinds.
        with isolated_rng("mixed prompts", run_seed(), self.rollouts_done):
            mixed = [mixed[i] for i in torch.randperm(len(mixed)).tolist()]
        return part_of_process(mixed, self.global_rank, self.trainer.world_size, updates)

    def questions(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """Rows that are verdicts."""
        flags = [correct is not None for correct in batch.column("solution_correct")]
        return torch.tensor(flags, device=batch.completion_ids.device)

    def score(self, batch: RolloutBatch) -> dict[str, Float[Tensor, "rows"]]:
        verdicts = self.questions(batch)
        return {
            name: scores if name == self.verdict.name else scores.masked_fill(verdicts, torch.nan)
            for name, scores in super().score(batch).items()
        }

    def observe(self, batch: RolloutBatch) -> None:
        """Add the solutions of all processes to the buffer, with their correctness; skip those without an answer."""
        scores, size = self.judge.unscaled(batch.rewards[self.judge.name], batch).tolist(), batch.group_size
        solutions, by_prompt = answers(batch), []
        for prompt, row in enumerate(batch.rows):
            questions: list[dict[str, Any]] = []
            by_prompt.append(questions)
            if row.get("solution_correct") is not None:
                continue
            group = range(prompt * size, (prompt + 1) * size)
            usable = [i for i in group if solutions[i] and not math.isnan(scores[i])]
            # Counts only questions that can be drawn, so that a perfect verifier earns 1 on average.
            truth = {"group_correct": sum(scores[i] >= 1 for i in usable), "group_size": len(usable)}
            for i in usable:
                question = verify_row(row, solutions[i], self.verification.prompt)
                questions.append(question | truth | {"solution_correct": scores[i] >= 1})
        whole = in_one_order(gathered(by_prompt), self.batch.updates_per_rollout)
        self.buffer.add([row for rows in whole for row in rows], self.rollouts_done)

    def advantages(self, batch: RolloutBatch) -> Float[Tensor, "rows"] | Float[Tensor, "rows time"]:
        advantages, verdicts = super().advantages(batch), self.questions(batch)
        returns = self.returns(batch).masked_fill(~verdicts, torch.nan)
        judged = self.verdict_advantage(returns, batch.groups, batch.completion_ids, batch.action_mask)
        if advantages.dim() == 2:
            verdicts, judged = verdicts[:, None], judged[:, None]
        return torch.where(verdicts, judged, advantages)

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        questions = self.buffer.rows
        metrics = {"buffer": float(len(questions))}
        if questions:
            metrics["buffer_correct"] = sum(row["solution_correct"] for row in questions) / len(questions)
            metrics["buffer_age"] = sum(self.rollouts_done - row["rollout"] for row in questions) / len(questions)
        truths = batch.column("solution_correct")
        pairs = [(v, c) for v, c in zip(self.verdict.verdicts(batch), truths, strict=True) if c is not None]
        of_questions = means(
            {
                "verify_accuracy": torch.tensor([verdict is truth for verdict, truth in pairs], dtype=torch.bool),
                "yes_rate": torch.tensor([verdict is True for verdict, _ in pairs], dtype=torch.bool),
                "questions": self.questions(batch),
            }
        )
        return metrics | of_questions if of_questions["questions"] else metrics

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.verdict_advantage.prepare(summed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["verify_buffer"] = self.buffer.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.buffer.rows = checkpoint["verify_buffer"]

    # ---- inference: votes weighted by the policy's own verdicts ------------------------------------------------------

    def judged(self, batch: RolloutBatch) -> tuple[RolloutBatch, Float[Tensor, "rows"]]:
        """(verdicts on all solutions of a batch, s = pi(Yes) after the reasoning of each verdict)."""
        asked = [
            verify_row(batch.rows[i // batch.group_size], text, self.verification.prompt)
            for i, text in enumerate(answers(batch))
        ]
        sampling = replace(self.evaluation_sampling, temperature=self.verification.temperature)
        verdicts = self.sample(asked, 1, sampling)
        return verdicts, yes_probability(self.policy, verdicts)

    def vote(self, batch: RolloutBatch, scores: Float[Tensor, "rows"], exponent: float) -> list[int]:
        """The row that each problem's vote chooses; equivalent answers count as one."""
        texts, values, size, form = (
            self.judge.extracted(batch),
            scores.tolist(),
            batch.group_size,
            self.verification.form,
        )
        starts = range(0, len(texts), size)
        return [at + weighted_vote(texts[at : at + size], values[at : at + size], exponent, form) for at in starts]

    def evaluate(self, rows: Rows, stage: str, loader: int = 0) -> RolloutBatch:
        batch = super().evaluate(rows, stage, loader)
        with isolated_rng("verdicts", self.evaluation_seed):
            verdicts, scores = self.judged(batch)
        grades = self.judge.unscaled(batch.rewards[self.judge.name], batch).tolist()
        correct = [None if math.isnan(grade) else grade >= 1 for grade in grades]
        said, size = self.verdict.verdicts(verdicts), batch.group_size
        weighted, majority = self.vote(batch, scores, self.verification.exponent), self.vote(batch, scores, 0.0)
        for i, (chosen, most_frequent) in enumerate(zip(weighted, majority, strict=True)):
            group = slice(i * size, (i + 1) * size)
            if correct[chosen] is None or correct[most_frequent] is None:
                continue  # as pass@k, votes count problems that could be judged
            pairs = [(verdict, truth) for verdict, truth in zip(said[group], correct[group], strict=True)]
            pairs = [pair for pair in pairs if pair[1] is not None]
            self.votes.append({"vote": correct[chosen], "majority": correct[most_frequent], "pairs": pairs})
        return batch

    def end_evaluation(self, stage: str) -> None:
        super().end_evaluation(stage)
        votes = [vote for votes in gathered(self.votes) for vote in votes]
        self.votes = []
        for name, value in vote_metrics(votes).items():
            self.log(f"{stage}/{name}", value)  # already equal on all processes

    def predict_step(self, rows: Rows, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Prompts with the completion that the weighted vote chooses, and its score s."""
        with isolated_rng("predict", self.evaluation_seed):
            batch = self.sample(rows, self.evaluation.samples, self.evaluation_sampling)
            _, scores = self.judged(batch)
        chosen = zip(rows, self.vote(batch, scores, self.verification.exponent), strict=True)
        return [
            {"id": row["id"], "prompt": row["prompt"], "completion": batch.completions[i], "score": float(scores[i])}
            for row, i in chosen
        ]


PAPER = Paper(
    name="self_verify",
    title="Self-verification",
    arxiv="2506.01369",
    idea="one policy solves and judges; votes are weighted by its own verdicts",
    classes=("lightning_modules.SelfVerify", "rewards.Verdict"),
    configs=("self_verify",),
    effect="right verdicts in training 0.70 → 0.87, pass@1 0.47 → 0.93",
    not_compared="its start must be able to judge a solution, which this one has never seen",
    experiment=Experiment(
        rollouts=40,
        arms={
            "self_verify": {},
            "binary reward": {
                "model.rewards": [
                    {"class_path": "rewards.ExactAnswer"},
                    {
                        "class_path": "rewards.Verdict",
                        "init_args": {"dynamic": False, "code_penalty": 0.0, "bare_penalty": 0.0},
                    },
                ]
            },
            "grpo": {"model.verification.share": 0.0},
        },
        columns={
            "val pass@1": "val/pass1",
            "balanced accuracy of verdicts": "val/verify_balanced",
            "right verdicts in training": "train/verify_accuracy",
            "vote": "val/vote",
            "majority": "val/majority",
        },
        expect="Balanced accuracy of verdicts above 0.7; pass@1 at least that of solving alone; the weighted vote at "
        "least as good as the majority's.",
        validate_every=10,
        claims=(
            Claim(text="verdicts become better", column="balanced accuracy of verdicts", sign=1, against="start"),
            Claim(
                text="than those of a policy that only solves",
                column="balanced accuracy of verdicts",
                sign=1,
                against="grpo, equal tokens",
            ),
            Claim(
                text="solving does not suffer", column="val pass@1", sign=0, against="grpo, equal tokens", margin=0.02
            ),
            Claim(
                text="votes weighted by verdicts are at least as good",
                column="vote",
                sign=0,
                against="self_verify",
                against_column="majority",
                margin=0.01,
            ),
        ),
    ),
)
