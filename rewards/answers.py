"""Rewards that compare a completion's answer with the data row's."""

import re
from fractions import Fraction
from typing import Any

from rewards.answer_process import judged
from rewards.base import Reward, needs
from rollouts import RolloutBatch
from support.errors import ConfigError


def answer_text(completion: str, opened: bool) -> str:
    """What follows the reasoning, ends stripped; "" if the reasoning was opened and never closed.

    Args:
        opened: the prompt ended with an open <think>.
    """
    if "</think>" in completion:
        return completion.rsplit("</think>", 1)[1].strip()
    return "" if opened or "<think>" in completion else completion.strip()


def answers(batch: RolloutBatch) -> list[str]:
    """The answer of every row."""
    return [answer_text(text, opened) for text, opened in zip(batch.completions, batch.opened, strict=True)]


class ExactAnswer(Reward):
    """1 if the text after the reasoning equals the row's `answer`, ends of it stripped, else 0."""

    is_correctness = True

    def score(self, batch: RolloutBatch) -> list[float]:
        return [
            float(found == str(wanted).strip())
            for found, wanted in zip(answers(batch), batch.column("answer"), strict=True)
        ]

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer")


_NUMBER = re.compile(r"(?:(?<![\d)\]])-)?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def last_number(text: str) -> Fraction | None:
    """The last number in a text; thousands separators and simple fractions are read, 0 denominators are not."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Fraction(found[-1].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        try:
            numerator, _, denominator = found[-1].replace(",", "").partition("/")
            return Fraction(numerator) / Fraction(denominator)
        except (ValueError, ZeroDivisionError):
            return None


class NumericAnswer(Reward):
    """1 if the last number after the reasoning equals the last number of the row's `answer`, else 0."""

    is_correctness = True

    def score(self, batch: RolloutBatch) -> list[float]:
        pairs = zip(answers(batch), batch.column("answer"), strict=True)
        return [
            float((found := last_number(text)) is not None and found == last_number(str(wanted)))
            for text, wanted in pairs
        ]

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer")
        if last_number(str(row["answer"])) is None:
            raise ConfigError(
                f"the reward {self.name!r} compares numbers, but the answer of row {row.get('id')!r} is {row['answer']!r}; use ExactAnswer, or mend the row."
            )


class MathAnswer(Reward):
    """1 if math-verify finds the answer equivalent to the row's `answer` (LaTeX or plain), else 0; an answer that takes seconds to compute is wrong."""

    is_correctness = True

    def score(self, batch: RolloutBatch) -> list[float]:
        pairs = zip(answers(batch), batch.column("answer"), strict=True)
        return [float(judged("equal", str(wanted), text[-2000:]) is True) for text, wanted in pairs]

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer")


class Format(Reward):
    """1 if the whole completion matches a pattern, else 0.

    Args:
        pattern: a regular expression; by default some reasoning closed once by </think>, then an answer.
    """

    def __init__(
        self,
        pattern: str = r"(?:(?!</think>)[\s\S])*</think>(?:(?!</?think>)[\s\S])*\S\s*",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"Format: the pattern {pattern!r} is not a regular expression: {error}.") from error

    def score(self, batch: RolloutBatch) -> list[float]:
        return [float(self.pattern.fullmatch(text) is not None) for text in batch.completions]
