"""Plain functions as rewards."""

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import TRLS_OWN, Reward, needs
from rewards.scores import as_scores
from rollouts import RolloutBatch
from support.errors import ConfigError


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
        correctness: whether a score of 1 means a correct answer, so that pass@k is measured.
        span: (smallest score, largest score, whether only these two occur), which a confidence bound on a cost needs.
    """

    may_abstain = True

    def __init__(
        self,
        function: str | Callable[..., Any],
        weight: float = 1.0,
        name: str | None = None,
        waits: bool = False,
        completions: Literal["as_prompt", "text"] = "as_prompt",
        correctness: bool = False,
        span: tuple[float, float, bool] | None = None,
    ) -> None:
        if correctness:
            self.is_correctness = True
        if span is not None:
            if not span[0] < span[1]:
                raise ConfigError(f"FunctionReward: span is {span}; its first number must be below its second.")
            self.span = span
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
            returned = _result(returned)
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


def _result(value: Awaitable[Any]) -> Any:
    """The result of an awaitable, also where an event loop runs already, as in a notebook."""

    async def awaited() -> Any:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, awaited()).result()


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


def as_reward(reward: Any) -> Reward:
    """The reward itself, or a plain function as a `FunctionReward`.

    Raises:
        ConfigError: for anything else.
    """
    if isinstance(reward, Reward):
        return reward
    if callable(reward) and not isinstance(reward, type):
        return FunctionReward(reward)
    if type(reward).__name__ == "Namespace" or (isinstance(reward, dict) and "class_path" in reward):
        raise ConfigError(
            "rewards were not made from their configuration, because the module's constructor does not state their "
            "type; write `rewards: list[Reward]` there."
        )
    kind = f"the class {reward.__name__}" if isinstance(reward, type) else f"{type(reward).__name__} {reward!r:.60}"
    raise ConfigError(
        f"rewards has {kind}, which is not a reward; give an instance such as rewards.ExactAnswer(), or a function "
        "f(prompts, completions, **columns) that returns one number per completion."
    )
