"""The check that each data row's gold answer earns the full reward.

It is made before anything is sampled, for every reward that judges correctness.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rollouts import RolloutBatch, text_batch
from support.errors import ConfigError

#: maximum number of rows that are checked; more rows are sampled
SAMPLED = 2000
#: maximum number of rows in the message
NAMED = 5


@dataclass(frozen=True)
class GoldProblem:
    """A data row whose own answer does not earn the full reward.

    Args:
        id: id of the row.
        gold: the row's answer, as it was scored.
        score: score of the answer; NaN if the reward cannot read it.
    """

    id: str
    gold: str
    score: float


def answer_text(completion: str, opened: bool) -> str:
    """The text after the reasoning, without surrounding white space; "" if the reasoning was opened but never closed.

    Args:
        opened: whether the prompt ended with an open <think>.
    """
    if "</think>" in completion:
        return completion.rsplit("</think>", 1)[1].strip()
    return "" if opened or "<think>" in completion else completion.strip()


def answers(batch: RolloutBatch) -> list[str]:
    """The answer of every row, in its last message."""
    return [answer_text(text, opened) for text, opened in batch.messages]


class Judge(Protocol):
    """The part of a `rewards.Reward` that judges gold answers."""

    name: str

    def gold(self, row: dict[str, Any]) -> str | None: ...
    def __call__(self, batch: RolloutBatch) -> Tensor: ...
    def unscaled(self, scores: Tensor, batch: RolloutBatch) -> Tensor: ...
    def self_check(self, rows: Sequence[dict[str, Any]]) -> list[GoldProblem]: ...


def check_golds(reward: Judge, rows: Sequence[dict[str, Any]]) -> list[GoldProblem]:
    """The problems of `Reward.self_check`."""
    if len(rows) > SAMPLED:
        rows = random.Random(0).sample(list(rows), SAMPLED)
    stated = [(row, gold) for row in rows if (gold := reward.gold(row)) is not None]
    if not stated:
        return []
    batch = text_batch([gold for _, gold in stated], [row for row, _ in stated])
    scores = reward.unscaled(reward(batch), batch).tolist()
    return [
        GoldProblem(str(row.get("id")), gold, score)
        for (row, gold), score in zip(stated, scores, strict=True)
        if not score >= 1
    ]


def report_golds(reward: Judge, rows: Sequence[dict[str, Any]]) -> str | None:
    """One paragraph about the rows whose own answer does not earn the full reward; None if all do.

    Raises:
        ConfigError: if no row's answer does, because nothing could be learned then.
    """
    problems = reward.self_check(rows)
    if not problems:
        return None
    checked = min(len(rows), SAMPLED)
    named = "; ".join(
        f"row {problem.id!r}: {problem.gold[:60]!r} "
        + ("cannot be read" if problem.score != problem.score else f"earns {problem.score:g}")
        for problem in problems[:NAMED]
    )
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    paragraph = (
        f"the reward {reward.name!r} ({type(reward).__name__}) does not give the row's own answer the full reward in "
        f"{len(problems)} of {checked} rows that were checked ({named}{more}). "
    )
    if len(problems) == checked:
        raise ConfigError(
            f"{paragraph}Nothing could be learned: choose the reward that fits these answers (MathAnswer, "
            "NumericAnswer, ExactAnswer, MultipleChoice), or map the right column in data.columns."
        )
    return f"{paragraph}No completion can be right there: correct or remove these rows, or choose another reward."
