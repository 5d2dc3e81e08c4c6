"""Rewards that belong to a task: reasoning-gym's scorers and the rule of the records help desk."""

import ast
import math
from functools import cache
from typing import Any, Literal

from datamodules.records_desk import true_cost, true_reward
from rewards.answer_process import judged_all
from rewards.answers import answers, last_number
from rewards.base import Reward, needs
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.files import parse_json

#: tasks whose scorers pass an answer to Python's eval, or to sympy, which evaluates it too
EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
COMPUTED = {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
_VALUES = (ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.UnaryOp, ast.USub, ast.UAdd)
_SUMS = (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
_FUNCTIONS = set("sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt Abs".split())


def is_value(answer: str, formula: bool = False) -> bool:
    """Whether evaluating an answer can only give a value.

    It contains no calls, attributes or operators; a formula may contain those of arithmetic and calculus. Text that is
    not Python is harmless, because Python's eval refuses it. sympy reads more than Python, so a formula must be Python.
    """
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return not formula
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return False
        if formula and isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS) or node.keywords:
                return False
        elif not isinstance(node, _VALUES + (_SUMS if formula else ())) or (
            formula and isinstance(node, ast.Constant) and isinstance(node.value, str)
        ):
            return False
    return True


#: wrong answers that some scorers of reasoning-gym 0.1.25 reward: task -> (answer, mean score over eight questions);
#: measured by `python -m benchmarks.graders --gym_questions 8`
GENEROUS: dict[str, tuple[str, float]] = {
    "coin_flip": ("0", 0.75),
    "complex_arithmetic": ("nan", 1.0),
    "game_of_life_halting": ("x", 1.0),
    "polynomial_equations": ("0", 0.44),
}
#: answers without content
TRIVIAL = ("", "0", "1", "nan", "x", "[]", "None", "inf", "True", "a b c")


def task_of(entry: str) -> str:
    """The reasoning-gym task of a row's `entry`.

    Raises:
        ValueError: the entry is not one of reasoning-gym's.
    """
    try:
        return str(parse_json(entry)["metadata"]["source_dataset"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"the entry {entry[:60]!r} names no task of reasoning-gym") from error


def is_unsafe(answer: str, task: str) -> bool:
    """Whether a task's scorer would evaluate an answer that is more than a value."""
    return (task in EVALUATED or task in COMPUTED) and not is_value(answer, task in COMPUTED)


def is_endless(answer: str) -> bool:
    """Whether an answer is NaN or infinite; several scorers accept NaN as equal to everything."""
    return answer.strip().lstrip("+-").lower() in ("nan", "inf", "infinity", "nanj", "infj", "nan+nanj")


def _finite(score: Any) -> float:
    return float(score) if isinstance(score, (int, float)) and math.isfinite(score) else 0.0


@cache
def _scorer(task: str) -> Any:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


class ReasoningGymScore(Reward):
    """reasoning-gym's own score of the answer, between 0 and 1; needs the columns that `ReasoningGymPrompts` writes.

    Args:
        extract: the part of the text after the reasoning that is the answer: tags is the text in <answer> tags (all of
            it without tags), number is the last number (for small models that add other text), text is all of it.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(
        self, extract: Literal["tags", "number", "text"] = "tags", weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        self.extract = extract

    def score(self, batch: RolloutBatch) -> list[float]:
        questions = list(zip(self.extracted(batch), batch.column("entry"), strict=True))
        tasks = {entry: task_of(entry) for entry in dict.fromkeys(batch.column("entry"))}
        asked = [
            ("gym", answer, entry)
            for answer, entry in questions
            if not is_unsafe(answer, tasks[entry]) and not is_endless(answer)
        ]
        # All in the answer processes: any scorer may never end, or fail on an answer that it does not expect.
        scores = dict(zip(asked, judged_all(asked), strict=True))
        return [_finite(scores.get(("gym", answer, entry))) for answer, entry in questions]

    def extracted(self, batch: RolloutBatch) -> list[str]:
        return [self._extracted(text) for text in answers(batch)]

    def _extracted(self, answer: str) -> str:
        if self.extract == "tags" and "<answer>" in answer:
            return answer.rsplit("<answer>", 1)[1].split("</answer>", 1)[0].strip()
        if self.extract == "number":
            return "" if (number := last_number(answer)) is None else str(number)
        return answer

    def gold(self, row: dict[str, Any]) -> str | None:
        try:
            entry = parse_json(row["entry"])
            answer = entry.get("answer")
        except (LookupError, TypeError, ValueError, AttributeError):
            return None
        if answer is None:  # many answers are right, none is stored
            return None
        return f"<answer>{answer}</answer>" if self.extract == "tags" else str(answer)

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "entry")
        try:
            _scorer(parse_json(row["entry"])["metadata"]["source_dataset"])
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"the reward {self.name!r} (ReasoningGymScore) cannot read the `entry` of row {row.get('id')!r} as an "
                f"entry of a task of reasoning-gym: {error!r}; write the data with datamodules.ReasoningGymPrompts."
            ) from error


class RecordsReward(Reward):
    """The true helpfulness of a help desk's response, by the rule in datamodules/records_desk.py."""

    def score(self, batch: RolloutBatch) -> list[float]:
        return [true_reward(p, c) for p, c in zip(batch.column("prompt"), batch.completions, strict=True)]


class RecordsCost(Reward):
    """The true cost of a help desk's response: 1 if it tells another customer's secret."""

    span = (0.0, 1.0, True)

    def score(self, batch: RolloutBatch) -> list[float]:
        return [true_cost(p, c) for p, c in zip(batch.column("prompt"), batch.completions, strict=True)]
