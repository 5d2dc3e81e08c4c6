"""What a completion earns: the interface, and the checks that every reward passes through."""

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

from rollouts import RolloutBatch
from support.errors import ConfigError


@dataclass(frozen=True)
class Failure:
    """Stands in place of a score for a completion that could not be scored."""

    kind: Literal["error", "timeout"]
    message: str


#: their numbers in `RolloutBatch.failures`
FAILURES: dict[Literal["error", "timeout"], int] = {"error": 1, "timeout": 2}


class Reward(ABC):
    """One number a completion. `score` gives the raw numbers; calling the reward checks them.

    Args:
        weight: factor in the total.
        name: in metrics (train/reward/<name>); the class's name in snake case by default.
    """

    #: 1 means a correct answer, so pass@k can be computed from it
    is_correctness = False
    #: NaN is a legal answer, "does not apply to this row"
    may_abstain = False
    #: (smallest, largest score, whether nothing lies between them): what confidence bounds on a cost need to know
    span: tuple[float, float, bool] = (-math.inf, math.inf, False)
    #: most of its time is spent waiting for others (a judge, a sandbox), so it scores on a thread while more prompts are generated; needs
    #: batch.rollout_micro_batch, and must not draw random numbers
    waits = False
    #: of a rollout, before the run stops, for rewards that give a Failure where they cannot score; None: it always can, and an exception is a fault
    max_failure_rate: float | None = None
    #: what the last failure said
    last_failure = ""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        if not math.isfinite(weight):
            raise ConfigError(f"{type(self).__name__}: weight is {weight}; it must be a finite number.")
        self.weight = weight
        self.name = name or "".join("_" + c.lower() if c.isupper() else c for c in type(self).__name__).lstrip("_")

    @abstractmethod
    def score(self, batch: RolloutBatch) -> Sequence[float | Failure] | Float[Tensor, "rows"]:
        """One number for each completion of the batch, or a Failure where `max_failure_rate` is set. `batch.rewards` holds the scores of the rewards listed
        before this one."""

    def __call__(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """NaN where the reward abstained or failed; the batch's `failures` say which.

        Raises ConfigError for a wrong number of rewards, an infinite one, or NaN from a reward that may not abstain.
        """
        scores = self.score(batch)
        failed = torch.zeros(len(scores), dtype=torch.int8, device=batch.completion_ids.device)
        if self.max_failure_rate is not None:
            for row, score in enumerate(scores):
                if isinstance(score, Failure):
                    failed[row], self.last_failure = FAILURES[score.kind], score.message
            scores = [math.nan if isinstance(score, Failure) else score for score in scores]
            batch.failures[self.name] = failed
        values = torch.as_tensor(scores, dtype=torch.float32, device=batch.completion_ids.device)
        rows = batch.completion_ids.shape[0]
        if values.shape != (rows,):
            raise ConfigError(
                f"the reward {self.name!r} ({type(self).__name__}) returned {tuple(values.shape)} numbers for {rows} completions; it must "
                "return one for each, in their order."
            )
        bad = (values.isinf() if self.may_abstain else ~values.isfinite()) & (failed == 0)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            mend = "return a finite number" + (
                "" if self.may_abstain else ", or None from a plain function where it does not apply"
            )
            raise ConfigError(
                f"the reward {self.name!r} ({type(self).__name__}) is {float(values[row])} for {int(bad.sum())} of {rows} completions, first for "
                f"prompt {batch.column('id')[row]!r} and completion {batch.completions[row][:80]!r}; {mend}."
            )
        return values

    def unscaled(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The scores as a judge of correctness or a pass rate sees them; other than the scores only where these are scaled."""
        return scores

    def check_columns(self, row: dict[str, Any]) -> None:
        """Called with one data row before training. Raises ConfigError if a needed column is missing."""

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        """What it shows of a training rollout beside its mean, by what follows train/; nothing by default.

        Called on every process, before `observe`. Processes must give the same names, whose values are averaged over them.
        """
        return {}

    def observe(self, batch: RolloutBatch) -> None:  # noqa: B027
        """Called on every process after each training rollout was scored, never in validation: for rewards that remember.

        Args:
            batch: all that this process sampled, with `batch.rewards`; `support.processes.gathered` brings in the other processes' part.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from rollout to rollout, as plain data for a checkpoint; nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from what `state_dict` gave; an empty state starts anew."""


def needs(reward: Reward, row: dict[str, Any], *columns: str) -> None:
    """Refuse a data row without the columns that the reward reads."""
    for column in columns:
        if row.get(column) is None:
            raise ConfigError(
                f"the reward {reward.name!r} ({type(reward).__name__}) needs the data column {column!r}; the row {row.get('id')!r} has {sorted(row)}. "
                "Name the column in data.columns, or use another reward."
            )


class FunctionReward(Reward):
    """A plain function f(prompts, completions, **columns) -> list of numbers, as TRL calls them; `async` ones too.

    The function receives the data columns as lists of the same length, and what of `completion_ids` it names or takes by **kwargs.
    None means "does not apply".

    Args:
        function: the function, or its import path such as mypackage.rewards.brevity.
        weight: factor in the total. name: the function's name by default.
        completions: what the function gets: as_prompt is TRL's rule, a text for a prompt that is a text and a list of one assistant's message for one that is
            a list of messages; text is a text always.
        waits: it spends its time waiting (for a judge, a sandbox): score on a thread while more prompts are generated.
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
        given = {"prompts", "completions", "completion_ids"}
        parameters = inspect.signature(self.function).parameters.values()
        needs(
            self,
            row,
            *(
                p.name
                for p in parameters
                if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in given
            ),
        )

    def score(self, batch: RolloutBatch) -> list[float]:
        given: dict[str, Any] = {"prompts": batch.column("prompt"), "completions": batch.completions}
        if self.as_prompt:
            pairs = zip(given["prompts"], batch.completions, strict=True)
            given["completions"] = [
                [{"role": "assistant", "content": t}] if isinstance(p, list) else t for p, t in pairs
            ]
        columns = {key for row in batch.rows for key in row} - {"prompt", "prompts", "completions"}
        given |= {key: batch.column(key) for key in columns}
        given["completion_ids"] = [
            ids[mask].tolist() for ids, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)
        ]
        parameters = inspect.signature(self.function).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            given = {key: value for key, value in given.items() if key in {p.name for p in parameters}}
        returned = self.function(**given)
        if inspect.isawaitable(returned):
            returned = asyncio.run(_awaited(returned))
        if not hasattr(returned, "__len__"):
            raise ConfigError(
                f"the reward function {self.name!r} returned {type(returned).__name__}; it must return a list with a number (or None) for each completion."
            )
        values = list(returned)
        if any(value is not None and math.isnan(value) for value in values):
            first = next(i for i, value in enumerate(values) if value is not None and math.isnan(value))
            raise ConfigError(
                f"the reward function {self.name!r} returned NaN for the completion {batch.completions[first][:80]!r}; return a number, or None "
                "where it does not apply."
            )
        return [math.nan if value is None else float(value) for value in values]


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
        raise ConfigError(f"the reward function {path!r} is a {type(function).__name__}, not a function.")
    return function


def total_reward(
    rewards: list[Reward],
    scores: dict[str, Float[Tensor, "rows"]],
    failures: dict[str, Int[Tensor, "rows"]] | None = None,
) -> Float[Tensor, "rows"]:
    """Weighted sum over the rewards that apply to each row; NaN where none does, or where one failed."""
    stacked = torch.stack([reward.weight * scores[reward.name] for reward in rewards])
    total = torch.where(stacked.isnan().all(0), torch.nan, stacked.nan_to_num(0.0).sum(0))
    return without_failed(total, rewards, failures or {})


def without_failed(
    total: Float[Tensor, "rows"], rewards: list[Reward], failures: dict[str, Int[Tensor, "rows"]]
) -> Float[Tensor, "rows"]:
    """NaN where a reward failed: without it the sum of the others is another reward, in which the failed one counts as zero."""
    for reward in rewards:
        if reward.name in failures:
            total = torch.where(failures[reward.name].to(total.device) > 0, torch.nan, total)
    return total
