"""The interface of rewards, and the checks of their scores."""

import asyncio
import importlib
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

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


class FunctionReward(Reward):
    """A plain function f(prompts, completions, **columns) -> list of numbers, as TRL calls them; it may be `async`.

    The function receives the data columns as lists of the same length, and `completion_ids` if it has such a parameter
    or **kwargs. None means "does not apply".

    Args:
        function: the function, or its import path such as mypackage.rewards.brevity.
        weight: factor in the total.
        name: name in metrics; the function's name by default.
        completions: form of the completions: as_prompt is TRL's rule, a text for a text prompt and a list with one
            assistant message for a list of messages; text is always a text.
        waits: whether it mostly waits (for a judge, a sandbox) and scores on a thread while further prompts are
            generated.
    """

    may_abstain = True

    def __init__(
        self,
        function: str | Callable[..., Any],
        weight: float = 1.0,
        name: str | None = None,
        waits: bool = False,
        completions: Literal["as_prompt", "text"] = "as_prompt",
    ) -> None:
        self.waits, self.as_prompt = waits, completions == "as_prompt"
        self.function = _imported(function) if isinstance(function, str) else function
        super().__init__(weight, name or getattr(self.function, "__name__", "function"))

    def check_columns(self, row: dict[str, Any]) -> None:
        provided = {"prompts", "completions", "completion_ids"}
        parameters = inspect.signature(self.function).parameters.values()
        required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        if trls := [name for name in required if name in TRLS_OWN and name not in row]:
            raise ConfigError(
                f"the reward function {self.name!r} has the parameter {trls[0]!r}, which TRL's trainer fills in and no "
                f"data column holds; remove it, or give it a default such as {trls[0]}=None."
            )
        needs(self, row, *(name for name in required if name not in provided))

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        arguments: dict[str, Any] = {"prompts": batch.column("prompt"), "completions": batch.completions}
        if self.as_prompt:
            pairs = zip(arguments["prompts"], batch.completions, strict=True)
            arguments["completions"] = [
                [{"role": "assistant", "content": t}] if isinstance(p, list) else t for p, t in pairs
            ]
        columns = {key for row in batch.rows for key in row} - {"prompt", "prompts", "completions"}
        arguments |= {key: batch.column(key) for key in columns}
        arguments["completion_ids"] = [
            ids[mask].tolist() for ids, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)
        ]
        parameters = inspect.signature(self.function).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            arguments = {key: value for key, value in arguments.items() if key in {p.name for p in parameters}}
        returned = self.function(**arguments)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
        rows, where = batch.completion_ids.shape[0], f"the reward function {self.name!r}"
        values = as_scores(returned, rows, where, none_abstains=True)
        abstained = [value is None for value in returned] if isinstance(returned, (list, tuple)) else [False] * rows
        if bool((odd := values.isnan() & ~torch.tensor(abstained, dtype=torch.bool)).any()):
            first = int(odd.nonzero()[0])
            raise ConfigError(
                f"{where} returned NaN for the completion {batch.completions[first][:80]!r}; return a number, or None "
                "where it does not apply."
            )
        return values


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the reward function {path!r} cannot be imported ({error}); give the path as package.module.function."
        ) from error
    if not callable(function):
        raise ConfigError(
            f"the reward function {path!r} is a {type(function).__name__}, not a function; give the path of a function."
        )
    return function


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
