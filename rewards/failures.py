"""Rewards that can fail: a judge that is down, a scorer that hangs.

A completion that could not be scored is left out of the training instead of earning zero.
"""

import ctypes
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rewards.base import FAILURES, Failure, Reward
from rewards.scores import LARGEST
from rewards.self_check import GoldProblem
from rollouts import RolloutBatch
from support.errors import ConfigError


class _TooLate(BaseException):
    """Raised in a thread whose time limit has passed."""


@dataclass
class _Outcome:
    value: Any = None
    error: BaseException | None = None


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """The result of function(), or TimeoutError after this many seconds.

    The function runs on a separate thread. After the time limit an exception ends the Python code that it executes. A
    call that waits inside C code (a socket, a sleep) is abandoned and keeps its thread until it returns.
    """
    outcome = _Outcome()

    def run() -> None:
        try:
            outcome.value = function()
        except BaseException as error:
            outcome.error = error

    thread = threading.Thread(target=run, daemon=True, name="guarded reward")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_TooLate))
        raise TimeoutError(f"no score within {seconds:g} s")
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


class Guarded(Reward):
    """A wrapper of a reward whose failures for single completions do not end the run.

    A failure is an exception, a time-out, or a score that is not finite. Failed completions get NaN and carry no
    advantage, whatever their other rewards are. `train/reward/error_rate` and `train/reward/timeout_rate` count them,
    and the run stops if more than `max_failure_rate` of a rollout or of a validation failed.

    Args:
        reward: called for one completion at a time, so it must not compare the completions of a group. Its name and
            weight are kept.
        timeout_s: time limit per completion, in seconds; None waits without limit. A hanging call takes this long.
        max_failure_rate: maximum fraction of failed completions per rollout.
    """

    def __init__(self, reward: Reward, timeout_s: float | None = 10.0, max_failure_rate: float = 0.05) -> None:
        super().__init__(reward.weight, reward.name)
        if timeout_s is not None and timeout_s <= 0:
            raise ConfigError(f"Guarded: timeout_s is {timeout_s}; set it above 0 s, or to null to wait without limit.")
        if reward.max_failure_rate is not None:
            raise ConfigError(
                f"Guarded: {type(reward).__name__} counts its failures itself; use it without Guarded and set its "
                "max_failure_rate."
            )
        self.reward, self.timeout_s = reward, timeout_s
        self.max_failure_rate = failure_rate(max_failure_rate, "Guarded")
        self.is_correctness, self.may_abstain, self.span, self.waits = (
            reward.is_correctness,
            reward.may_abstain,
            reward.span,
            reward.waits,
        )

    def score(self, batch: RolloutBatch) -> list[float | Failure]:
        return [self._one(batch.single(row)) for row in range(len(batch.finish_reasons))]

    def _one(self, single: RolloutBatch) -> float | Failure:
        def scored() -> float:
            (value,) = self.reward.score(single)
            return float(value)  # type: ignore[arg-type]  # a Failure has been refused as an inner reward

        try:
            value = scored() if self.timeout_s is None else within(self.timeout_s, scored)
        except TimeoutError as error:
            return Failure("timeout", str(error))
        except Exception as error:
            return Failure("error", f"{type(error).__name__}: {error}")
        if abs(value) > LARGEST or (math.isnan(value) and not self.may_abstain):
            return Failure("error", f"the score is {value}")
        return value

    def unscaled(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return self.reward.unscaled(scores, batch)

    @property
    def parts(self) -> list[Reward]:
        return [self.reward]

    def without_scale(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return self.reward.without_scale(scores, batch)

    def extracted(self, batch: RolloutBatch) -> list[str]:
        return self.reward.extracted(batch)

    def self_check(self, rows: Sequence[dict[str, Any]]) -> list[GoldProblem]:
        return self.reward.self_check(rows)

    def check_columns(self, row: dict[str, Any]) -> None:
        self.reward.check_columns(row)

    def observe(self, batch: RolloutBatch) -> None:
        self.reward.observe(batch)

    def state_dict(self) -> dict[str, Any]:
        return self.reward.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reward.load_state_dict(state)


def inner_scores(reward: Reward, batch: RolloutBatch) -> tuple[Float[Tensor, "rows"], dict[int, Failure]]:
    """The scores of a reward that another one calls, and its failures by row; the batch is left unchanged."""
    failures, judges = dict(batch.failures), dict(batch.judges)
    try:
        scores = reward(batch)
        kinds = batch.failures[reward.name].tolist() if reward.max_failure_rate is not None else []
    finally:
        batch.failures, batch.judges = failures, judges
    names = {number: kind for kind, number in FAILURES.items()}
    return scores, {row: Failure(names[kind], reward.last_failure) for row, kind in enumerate(kinds) if kind}


def lowest_rate(rewards: Sequence[Reward]) -> float | None:
    """The smallest `max_failure_rate` of several rewards; None if none of them can fail."""
    return min((reward.max_failure_rate for reward in rewards if reward.max_failure_rate is not None), default=None)


def failure_rate(rate: float, who: str) -> float:
    """The rate. Raises ConfigError if it is not between 0 and 1."""
    if not 0 <= rate <= 1:
        raise ConfigError(
            f"{who}: max_failure_rate is {rate}, but it is a fraction of a rollout's completions; set it between 0 "
            "and 1."
        )
    return rate
