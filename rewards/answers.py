"""Rewards that compare a completion's answer with the data row's."""

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from rewards.answer_process import judged_all
from rewards.base import Reward, needs
from rewards.math_algebra import NeedsAlgebra
from rewards.math_compare import Unreadable, grade, is_comparable
from rewards.math_compare import same as same_answer
from rewards.math_text import answers_in, key
from rewards.number_text import last_number, numbers
from rewards.self_check import answer_text, answers
from rollouts import RolloutBatch
from support.errors import ConfigError

__all__ = [
    "AnswerReward",
    "ExactAnswer",
    "Format",
    "MathAnswer",
    "NumericAnswer",
    "answer_text",
    "answers",
    "last_number",
]


def golds_of(answer: Any) -> list[str]:
    """The accepted answers of a data row's `answer`: one, or a list. None in a list is a table's filler and dropped."""
    listed = answer if isinstance(answer, (list, tuple)) or type(answer).__name__ == "ndarray" else [answer]
    return [str(one).strip() for one in listed if one is not None]


class AnswerReward(Reward):
    """1 if the text after the reasoning gives the row's `answer`, else 0; NaN where the row's answer cannot be read.

    Args:
        weight, name: as in every reward.
        accept: for an `answer` that is a list: "any" of its members is right, or "all" must be given.
    """

    is_correctness, may_abstain, span = True, True, (0.0, 1.0, True)

    def __init__(self, weight: float = 1.0, name: str | None = None, accept: Literal["any", "all"] = "any") -> None:
        super().__init__(weight, name)
        if accept not in ("any", "all"):
            raise ConfigError(f"{type(self).__name__}: accept is {accept!r}; set it to 'any' or 'all'.")
        self.accept = accept

    def score(self, batch: RolloutBatch) -> list[float]:
        golds = [golds_of(answer) for answer in batch.column("answer")]
        questions = list(zip(answers(batch), golds, strict=True))
        asked = self.prepared(questions)
        verdicts = [asked[text, tuple(accepted)] for text, accepted in questions]
        return [math.nan if verdict is None else float(verdict) for verdict in verdicts]

    def prepared(self, questions: list[tuple[str, list[str]]]) -> dict[tuple[str, tuple[str, ...]], bool | None]:
        """The verdict on every (text, golds); equal ones are judged once."""
        return {(text, tuple(golds)): self.verdict(text, golds) for text, golds in questions}

    def verdict(self, text: str, golds: list[str]) -> bool | None:
        """Whether an answer is right; None if no gold answer can be read."""
        if not (readable := [gold for gold in golds if self.reads(gold)]) or (
            self.accept == "all" and len(readable) < len(golds)
        ):
            return None
        if self.accept == "all" and len(golds) > 1:
            return self.gives_all(text, golds)
        return any(self.gives(text, gold) for gold in readable)

    def reads(self, gold: str) -> bool:
        """Whether a gold answer can be compared with anything."""
        return bool(gold)

    @abstractmethod
    def gives(self, text: str, gold: str) -> bool:
        """Whether the text after the reasoning gives a gold answer."""

    def gives_all(self, text: str, golds: list[str]) -> bool:
        """Whether the text gives all gold answers, in any order, and nothing else."""
        parts = [part.strip() for part in re.split(r"[,;\n]|\band\b", text) if part.strip()]
        return _matches(golds, parts, lambda gold, part: self.gives(part, gold))

    def gold(self, row: dict[str, Any]) -> str | None:
        golds = golds_of(row.get("answer"))
        return (", ".join(golds) if self.accept == "all" else golds[0]) if golds else None

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer")
        if not any(golds_of(row["answer"])):
            raise ConfigError(
                f"the reward {self.name!r} ({type(self).__name__}) compares answers, but that of row {row.get('id')!r} "
                f"is {row['answer']!r}; remove the row, or map the right column in data.columns."
            )


def _matches(golds: Sequence[str], parts: Sequence[str], same: Any) -> bool:
    """Whether gold answers and parts are equal in number and match one to one."""
    left = list(parts)
    for gold in golds:
        place = next((number for number, part in enumerate(left) if same(gold, part)), None)
        if place is None:
            return False
        del left[place]
    return not left


class ExactAnswer(AnswerReward):
    """1 if the text after the reasoning equals the row's `answer` without surrounding white space, else 0.

    An `answer` that is a list contains several accepted answers, see `accept`.
    """

    def gives(self, text: str, gold: str) -> bool:
        return text == gold


class NumericAnswer(AnswerReward):
    """1 if the last number after the reasoning equals the last number of the row's `answer`, else 0.

    It reads exponents (1e-5), a leading point, groups of three digits, simple fractions (LaTeX's too), and minus signs
    and digits of other scripts. `accept: all` compares the last numbers, as many as the row has answers, in any order.
    """

    def reads(self, gold: str) -> bool:
        return last_number(gold) is not None

    def gives(self, text: str, gold: str) -> bool:
        return (number := last_number(text)) is not None and number == last_number(gold)

    def gives_all(self, text: str, golds: list[str]) -> bool:
        stated = numbers(text, last=len(golds))
        return _matches([str(last_number(gold)) for gold in golds], list(map(str, stated)), str.__eq__)

    def extracted(self, batch: RolloutBatch) -> list[str]:
        return ["" if (number := last_number(text)) is None else str(number) for text in answers(batch)]

    def check_columns(self, row: dict[str, Any]) -> None:
        super().check_columns(row)
        if not any(map(self.reads, golds_of(row["answer"]))):
            raise ConfigError(
                f"the reward {self.name!r} compares numbers, but the answer of row {row.get('id')!r} is "
                f"{row['answer']!r}; use ExactAnswer, or correct the row."
            )


class MathAnswer(AnswerReward):
    """1 if the answer is equivalent to the row's `answer` (LaTeX, bare or not, plain or words), else 0.

    The last \\boxed{...} is the answer, at any place; without one, the text after "answer is", the last mathematics, or
    all of a short text. The order of a list does not matter, that of a tuple does. An equation counts as its right-hand
    side if the gold answer is not an equation. Words are compared as words. Numbers, words, lists and intervals are
    compared in this process; math-verify compares expressions that need algebra, in other processes, where an answer
    that takes seconds to compute is wrong. A gold answer that cannot be read gets NaN. docs/howto/grading.md has the
    table of accepted forms.
    """

    def prepared(self, questions: list[tuple[str, list[str]]]) -> dict[tuple[str, tuple[str, ...]], bool | None]:
        readable = self._readable(list(dict.fromkeys(gold for _, golds in questions for gold in golds)))
        right = self._right(
            [
                (gold, text)
                for text, golds in questions
                for gold in self._asked(golds)
                if all(readable[one] for one in golds) or readable.get(gold)
            ]
        )
        return {(text, tuple(golds)): self._verdict(text, golds, readable, right) for text, golds in questions}

    def _asked(self, golds: list[str]) -> list[str]:
        """The texts that answers are compared with: each gold answer, or all of them as one list."""
        return [", ".join(golds)] if self.accept == "all" and golds else golds

    def _verdict(
        self, text: str, golds: list[str], readable: dict[str, bool], right: dict[tuple[str, str], bool]
    ) -> bool | None:
        known = [gold for gold in golds if readable[gold]]
        if not known or (self.accept == "all" and len(known) < len(golds)):
            return None
        return any(right[gold, text] for gold in (self._asked(golds) if self.accept == "all" else known))

    def reads(self, gold: str) -> bool:
        return self._readable([gold])[gold]

    def gives(self, text: str, gold: str) -> bool:
        return self._right([(gold, text)])[gold, text]

    def _readable(self, golds: list[str]) -> dict[str, bool]:
        known, open_golds = {}, []
        for gold in golds:
            try:
                known[gold] = is_comparable(gold)
            except NeedsAlgebra:
                open_golds.append(gold)
        replies = judged_all([("readable", gold) for gold in open_golds])
        return known | {gold: reply is True for gold, reply in zip(open_golds, replies, strict=True)}

    def _right(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], bool]:
        return _decided(pairs, grade, "math")

    def extracted(self, batch: RolloutBatch) -> list[str]:
        """The answers; equivalent answers to one prompt get the first one's text."""
        extracted: list[str] = []
        for prompt in range(len(batch.rows)):
            texts = answers(batch)[prompt * batch.group_size : (prompt + 1) * batch.group_size]
            extracted += _pooled([next(iter(answers_in(text)), "") if text else "" for text in texts])
        return extracted


def _decided(pairs: list[tuple[str, str]], compare: Any, kind: str) -> dict[tuple[str, str], bool]:
    """compare(gold, text) of every pair: in this process, or together in the answer processes if it needs algebra."""
    known, open_pairs = {}, []
    for pair in dict.fromkeys(pairs):
        try:
            known[pair] = bool(compare(*pair))
        except NeedsAlgebra:
            open_pairs.append(pair)
        except Unreadable:
            known[pair] = False
    replies = judged_all([(kind, *pair) for pair in open_pairs])
    return known | {pair: reply is True for pair, reply in zip(open_pairs, replies, strict=True)}


def _pooled(texts: list[str]) -> list[str]:
    """The texts; a text that is equivalent to an earlier one is replaced by it."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(key(text), text)
    kinds = [text for text in first.values() if text]
    same = _decided(
        [(one, other) for number, one in enumerate(kinds) for other in kinds[number + 1 :]], same_answer, "same"
    )
    leader: dict[str, str] = {}
    for number, text in enumerate(kinds):
        leader[text] = next((leader[one] for one in kinds[:number] if same[one, text]), text)
    return [leader[first[key(text)]] if text else "" for text in texts]


class Format(Reward):
    """1 if the whole completion matches a pattern, else 0.

    Args:
        pattern: a regular expression; by default reasoning, exactly one </think>, then an answer.
        weight, name: as in every reward.
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
            raise ConfigError(
                f"Format: the pattern {pattern!r} is not a regular expression: {error}; correct its `pattern`."
            ) from error

    def score(self, batch: RolloutBatch) -> list[float]:
        return [float(self.pattern.fullmatch(text) is not None) for text in batch.completions]
