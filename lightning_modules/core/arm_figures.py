"""Accuracy and length of one arm of a matrix: over all problems, by seed and by difficulty, and beside another arm."""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from objectives.bootstrap import bootstrap_interval


class Answered(NamedTuple):
    """One completion.

    Fields:
        problem: id of its row. difficulty: of the row, None where the data has none.
        seed: of the sampling. correct: whether it is right. length: in tokens. truncated: whether it was cut off.
    """

    problem: str
    difficulty: str | None
    seed: int
    correct: bool
    length: int
    truncated: bool


def mean(values: list[Any]) -> float:
    """The mean of numbers."""
    return float(sum(values) / len(values))


def by_problem(answers: list[Answered]) -> dict[str, float]:
    """Accuracy of every problem over its samples and seeds."""
    correct: defaultdict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        correct[answer.problem].append(answer.correct)
    return {problem: mean(values) for problem, values in sorted(correct.items())}


def arm_figures(answers: list[Answered], baseline: list[Answered]) -> dict[str, Any]:
    """Plain data: accuracy with its interval over problems, change against the baseline, lengths, parts.

    Args:
        answers: of the arm; without any there are no figures. baseline: of the float model on the same problems and
            seeds.
    """
    if not answers:
        return {"problems": 0, "by_difficulty": {}}
    seeds, difficulties = ({getattr(answer, name) for answer in answers} for name in ("seed", "difficulty"))
    rates, reference = by_problem(answers), by_problem(baseline)
    changes = np.array([rate - reference[problem] for problem, rate in rates.items()])
    low, high = bootstrap_interval(np.array(list(rates.values())))
    change_low, change_high = bootstrap_interval(changes)
    figures: dict[str, Any] = {
        "problems": len(rates),
        "accuracy": mean([answer.correct for answer in answers]),
        "accuracy_interval": [low, high],
        "change": float(changes.mean()),
        "change_interval": [change_low, change_high],
        "length": mean([answer.length for answer in answers]),
        "truncated": mean([answer.truncated for answer in answers]),
        "by_seed": {
            str(seed): mean([answer.correct for answer in answers if answer.seed == seed]) for seed in sorted(seeds)
        },
        "by_difficulty": {},
    }
    for difficulty in sorted(difficulties - {None}, key=lambda name: (len(name), name)):
        part = [answer for answer in answers if answer.difficulty == difficulty]
        figures["by_difficulty"][difficulty] = {
            "problems": len({answer.problem for answer in part}),
            "accuracy": mean([answer.correct for answer in part]),
            "length": mean([answer.length for answer in part]),
        }
    return figures
