"""The interface of rewards, and the checks of their scores."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewards.evaluation import evaluation_batch
from rewards.math_text import last_box
from rewards.scores import as_scores
from rewards.self_check import GoldProblem, answers, check_golds
from rollouts import RolloutBatch
from support.errors import ConfigError


@dataclass(frozen=True)
class Failure:
    """Replaces the score of a completion that could not be scored."""

    kind: Literal["error", "timeout"]
    message: str


#: parameters of a reward function that TRL's trainers supply themselves, beside those that are supplied here
TRLS_OWN = {"trainer_state", "log_extra", "log_metric", "environments"}
#: codes of the failures in `RolloutBatch.failures`
FAILURES: dict[Literal["error", "timeout"], int] = {"error": 1, "timeout": 2}


class Reward(ABC):
    """A score of one number per completion. `score` returns the raw numbers; calling the reward checks them.

    Args:
        weight: factor in the total.
        name: name in metrics (train/reward/<name>); the class's name in snake case by default.
    """

    #: whether a score of 1 means a correct answer, so that pass@k can be computed from it
    is_correctness = False
    #: number of the turn that its score belongs to under shaping.credit turn; None for the last turn of a completion
    turn: int | None = None
    #: whether it reads what an environment gave or counted, so that it cannot score completions without one
    reads_turns = False
    #: whether a score may be NaN, "does not apply to this row"
    may_abstain = False
    #: (smallest score, largest score, whether only these two occur), for confidence bounds on a cost
    span: tuple[float, float, bool] = (-math.inf, math.inf, False)
    #: whether it mostly waits for others (a judge, a sandbox) and therefore scores on a thread while further prompts
    #: are generated; needs batch.rollout_micro_batch, and must not draw random numbers
    waits = False
    #: maximum fraction of failed completions per rollout, for rewards that return a Failure where they cannot score;
    #: None for rewards that always can, where an exception ends the run
    max_failure_rate: float | None = None
    #: message of the last failure
    last_failure = ""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        if not math.isfinite(weight):
            raise ConfigError(f"{type(self).__name__}: weight is {weight}; set it to a finite number.")
        self.weight = weight
        self.name = name or "".join("_" + c.lower() if c.isupper() else c for c in type(self).__name__).lstrip("_")

    @abstractmethod
    def score(self, batch: RolloutBatch) -> Sequence[float | Failure] | Float[Tensor, "rows"]:
        """One number per completion of the batch, or a Failure if `max_failure_rate` is set.

        `batch.rewards` contains the scores of the rewards that are listed before this one.
        """

    def __call__(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The checked scores; NaN where the reward abstained or failed (see the batch's `failures`).

        Raises:
            ConfigError: for a wrong number of scores, a score that is not a number or infinite, or NaN from a reward
                that may not abstain.
        """
        scores, rows = self.score(batch), batch.completion_ids.shape[0]
        failed = torch.zeros(rows, dtype=torch.int8, device=batch.completion_ids.device)
        if self.max_failure_rate is not None and isinstance(scores, Sequence):
            for row, score in enumerate(scores[:rows]):
                if isinstance(score, Failure):
                    failed[row], self.last_failure = FAILURES[score.kind], score.message
            scores = [math.nan if isinstance(score, Failure) else score for score in scores]
        if self.max_failure_rate is not None:
            batch.failures[self.name] = failed
        values = as_scores(scores, rows, f"the reward {self.name!r} ({type(self).__name__})")
        values = values.to(batch.completion_ids.device)
        bad = (values.isinf() if self.may_abstain else ~values.isfinite()) & (failed == 0)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            remedy = "return a finite number" + (
                "" if self.may_abstain else ", or None from a plain function where it does not apply"
            )
            raise ConfigError(
                f"the reward {self.name!r} ({type(self).__name__}) is {float(values[row])} for {int(bad.sum())} of "
                f"{rows} completions, first for prompt {batch.column('id')[row]!r} and completion "
                f"{batch.completions[row][:80]!r}; {remedy}."
            )
        batch.judges[self.name] = self
        return values

    def evaluate(
        self,
        completions: Sequence[Any],
        prompts: Sequence[Any] | None = None,
        *,
        group_size: int = 1,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Sequence[Any],
    ) -> list[float]:
        """Score given completions, without a model or a rollout.

        Args:
            completions: texts, or lists with one assistant message.
            prompts: text or messages of each completion, for rewards that read it. A text that ends with an open
                <think> means that the completion continues the reasoning.
            group_size: number of consecutive completions that answer the same prompt, for rewards that compare them.
            completion_ids: token ids of each completion, for rewards that count tokens; by default a completion has as
                many tokens as characters.
            columns: further data columns, such as answer, each with one entry per completion.

        Returns:
            One score per completion; NaN where the reward does not apply or failed.

        Raises:
            ConfigError: for columns of another length, a column that the reward needs and that is missing, or scores
                that are not numbers.
        """
        batch = evaluation_batch(completions, prompts, group_size, completion_ids, columns)
        for row in batch.rows:
            self.check_columns(row)
        try:
            scores: list[float] = self(batch).tolist()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"the reward {self.name!r} ({type(self).__name__}) cannot score these completions with the columns "
                f"{sorted(columns)}: {type(error).__name__}: {error}. Give the columns and prompts that it reads in "
                "the form that its documentation says."
            ) from error
        return scores

    def unscaled(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The scores for correctness and pass rates: 1 is right, NaN does not apply.

        They differ from the scores only if these are scaled or distinguish more than right and wrong.
        """
        return scores

    def without_scale(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The scores without the scale factors that were applied to them."""
        return scores

    def extracted(self, batch: RolloutBatch) -> list[str]:
        """The answer of every completion, the same text for equivalent answers of one prompt; "" without an answer.

        Votes group completions by it. By default it is the last box, or else the text after the reasoning.
        """
        return [text if (box := last_box(text)) is None else box for text in answers(batch)]

    @property
    def parts(self) -> list["Reward"]:
        """The rewards that this one calls; none by default."""
        return []

    def parts_for(self, row: dict[str, Any]) -> list["Reward"]:
        """The `parts` that score completions of a data row; all of them by default."""
        return self.parts

    def gold(self, row: dict[str, Any]) -> str | None:
        """A completion that gives the row's own answer, for `self_check`; None if the reward cannot construct one."""
        return None

    def self_check(self, rows: Sequence[dict[str, Any]]) -> list[GoldProblem]:
        """The rows whose own gold answer does not earn the full reward; more than 2,000 rows are sampled.

        Empty for rewards that do not judge correctness or have no `gold`.
        """
        return check_golds(self, rows) if self.is_correctness else []

    def check_columns(self, row: dict[str, Any]) -> None:
        """Check one data row before training. Raises ConfigError if a column that the reward reads is missing."""

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        """Further metrics of a training rollout, logged under train/; none by default.

        Called on every process, before `observe`. All processes must return the same names; the values are averaged.
        """
        return {}

    def observe(self, batch: RolloutBatch) -> None:  # noqa: B027
        """Update the reward's state. Called on every process after each scored training rollout, never in validation.

        Args:
            batch: everything that this process sampled, with `batch.rewards`; `support.processes.gathered` adds the
                parts of other processes.
        """

    def state_dict(self) -> dict[str, Any]:
        """State that is kept from rollout to rollout, as plain data for a checkpoint; empty by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue from the result of `state_dict`; an empty state resets it."""


def needs(reward: Reward, row: dict[str, Any], *columns: str) -> None:
    """Refuse a data row without the columns that the reward reads."""
    for column in columns:
        if row.get(column) is None:
            raise ConfigError(
                f"the reward {reward.name!r} ({type(reward).__name__}) needs the data column {column!r}; the row "
                f"{row.get('id')!r} has {sorted(row)}. Map the column in data.columns, or use another reward."
            )


def correct_rows(rewards: Sequence[Reward], batch: RolloutBatch) -> Float[Tensor, "rows"] | None:
    """1 for right and 0 for wrong completions, NaN for unknown; None without a reward that judges correctness.

    The first reward that judges correctness decides, by its scores before any scale.
    """
    judge = next((reward for reward in rewards if reward.is_correctness and reward.name in batch.rewards), None)
    if judge is None:
        return None
    scores = judge.unscaled(batch.rewards[judge.name], batch)
    return torch.where(scores.isnan(), torch.nan, (scores >= 1).to(scores.dtype))


def total_reward(
    rewards: list[Reward],
    scores: dict[str, Float[Tensor, "rows"]],
    failures: dict[str, Int[Tensor, "rows"]] | None = None,
) -> Float[Tensor, "rows"]:
    """Weighted sum over the rewards that apply to each row; NaN if none applies or one failed."""
    stacked = torch.stack([reward.weight * scores[reward.name] for reward in rewards])
    total = torch.where(stacked.isnan().all(0), torch.nan, stacked.nan_to_num(0.0).sum(0))
    return without_failed(total, rewards, failures or {})


def without_failed(
    total: Float[Tensor, "rows"], rewards: list[Reward], failures: dict[str, Int[Tensor, "rows"]]
) -> Float[Tensor, "rows"]:
    """The totals with NaN where a reward failed: a sum without it would count the failed reward as zero."""
    for reward in rewards:
        if reward.name in failures:
            total = torch.where(failures[reward.name].to(total.device) > 0, torch.nan, total)
    return total
