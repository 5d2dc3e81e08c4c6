"""The effect of content-preserving edits on a model's choices (arXiv 2502.12459).

For the questions that have both forms: accuracy under the edit, its difference to the accuracy of the unedited
questions with a paired bootstrap, and the fractions that flip from right to wrong and from wrong to right. The length
preference is the fraction of questions whose longest option is chosen, where one option is the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from objectives.bootstrap import bootstrap_interval

Figures = dict[str, "Interval"]


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray, seed: int) -> "Interval":
        """The mean of one value per question, with a bootstrap over the questions."""
        numbers = np.asarray(values, dtype=np.float64)
        return cls(float(numbers.mean()), *bootstrap_interval(numbers, seed=seed))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass
class Answer:
    """The answer to one form of a question.

    Fields:
        question: id of the question, which all its forms share. condition: name of the edit; base for none.
        answer: place of the right option.
        scores: score of every option by the way of scoring: label or text.
        lengths: characters of every option.
        statement: whether the form is a statement, with the options True and False.
    """

    question: str
    condition: str
    answer: int
    scores: dict[str, list[float]]
    lengths: list[int] = field(default_factory=list)
    statement: bool = False

    def chosen(self, scoring: str) -> int:
        """Place of the option with the best score."""
        return int(np.argmax(self.scores[scoring]))


def right_by_question(answers: Sequence[Answer], scoring: str) -> dict[str, float]:
    """1 or 0 per question.

    A question in statements is right if the right statement is the one that is most probably true, which has the same
    chance level as the choice among the options.
    """
    forms: dict[str, list[Answer]] = {}
    for answer in answers:
        forms.setdefault(answer.question, []).append(answer)
    return {question: float(_is_right(of_question, scoring)) for question, of_question in forms.items()}


def _is_right(answers: list[Answer], scoring: str) -> bool:
    if not answers[0].statement:
        return answers[0].chosen(scoring) == answers[0].answer
    margins = [answer.scores[scoring][0] - answer.scores[scoring][1] for answer in answers]
    return answers[int(np.argmax(margins))].answer == 0


def effect(base: dict[str, float], edited: dict[str, float], seed: int) -> Figures:
    """Accuracy of the edited questions, its difference to the same questions unedited, and the flips."""
    questions = [question for question in edited if question in base]
    before = np.array([base[question] for question in questions])
    after = np.array([edited[question] for question in questions])
    values = {
        "accuracy": after,
        "change": after - before,
        "right_to_wrong": (after < before).astype(float),
        "wrong_to_right": (after > before).astype(float),
    }
    return {name: Interval.of(of_questions, seed) for name, of_questions in values.items()}


def statement_figures(answers: Sequence[Answer], scoring: str, seed: int) -> Figures:
    """Of questions in statements: how many statements are judged right, and how many questions in all statements.

    `statements` weighs each question's true statement as much as its false ones together, so that its chance level is
    0.5 whatever the number of options.
    """
    forms: dict[str, list[Answer]] = {}
    for answer in answers:
        forms.setdefault(answer.question, []).append(answer)
    balanced, complete = [], []
    for of_question in forms.values():
        true = [float(one.chosen(scoring) == 0) for one in of_question if one.answer == 0]
        false = [float(one.chosen(scoring) == 1) for one in of_question if one.answer == 1]
        balanced.append(float(np.mean(true) + np.mean(false)) / 2)
        complete.append(float(all(true) and all(false)))
    return {"statements": Interval.of(balanced, seed), "all_statements": Interval.of(complete, seed)}


def length_figures(answers: Sequence[Answer], scoring: str, seed: int) -> Figures:
    """The length preference, with the fraction whose longest option is right, and the chance level."""
    with_longest = [answer for answer in answers if answer.lengths.count(max(answer.lengths)) == 1]
    if not with_longest:
        return {}
    longest = [int(np.argmax(answer.lengths)) for answer in with_longest]
    pairs = list(zip(with_longest, longest, strict=True))
    return {
        "longest_chosen": Interval.of([float(answer.chosen(scoring) == place) for answer, place in pairs], seed),
        "longest_right": Interval.of([float(answer.answer == place) for answer, place in pairs], seed),
        "longest_chance": Interval.of([1 / len(answer.lengths) for answer in with_longest], seed),
    }


def stress_figures(answers: Sequence[Answer], seed: int = 0) -> dict[str, dict[str, Any]]:
    """{way of scoring: {condition: {"questions": number, figure: Interval}}}; the base has the length preference too.

    Args:
        answers: all forms of all questions, in any order. seed: of the bootstraps.
    """
    answers = sorted(answers, key=lambda answer: answer.question)
    figures: dict[str, dict[str, Any]] = {}
    for scoring in dict.fromkeys(name for answer in answers for name in answer.scores):
        by_condition: dict[str, list[Answer]] = {}
        for answer in answers:
            if scoring in answer.scores:
                by_condition.setdefault(answer.condition, []).append(answer)
        base = right_by_question(by_condition["base"], scoring)
        figures[scoring] = {}
        for condition in sorted(by_condition, key=lambda name: name != "base"):
            edited = right_by_question(by_condition[condition], scoring)
            of_condition: dict[str, Any] = {"questions": len(edited)}
            if condition == "base":
                of_condition["accuracy"] = Interval.of(list(edited.values()), seed)
                of_condition |= length_figures(by_condition[condition], scoring, seed)
            else:
                of_condition |= effect(base, edited, seed)
            if by_condition[condition][0].statement:
                of_condition |= statement_figures(by_condition[condition], scoring, seed)
            figures[scoring][condition] = of_condition
    return figures
