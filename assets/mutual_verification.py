"""Mutual verification of programs: a majority with identical output vectors labels the outputs (rStar-Coder).

o_m = (f_m(u_1), ..., f_m(u_n)),   agreement = max_v |{m: o_m = v}| / M,   accepted if agreement >= tau
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from assets.many_inputs import Outcome, Program, literal
from rewards.code import code_of, program_of
from support.errors import ConfigError

Row = dict[str, Any]
#: the outputs of a program on all inputs, in a form in which equal ones are equal; None where it failed
Vector = tuple[str | None, ...]


@dataclass(frozen=True)
class Agreement:
    """The conditions under which candidates label the outputs of a problem.

    Args:
        at_least: smallest agreement, 0 to 1.
        hard: smallest agreement for problems whose `rating` is above hard_rating.
        hard_rating: in the units of the column `rating`.
        programs: number of different programs that must agree; equal texts verify nothing.
    """

    at_least: float = 0.6
    hard: float = 0.4
    hard_rating: float = 1600
    programs: int = 2

    def __post_init__(self) -> None:
        for name in ("at_least", "hard"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"--agreement.{name} is {getattr(self, name)}; it must be above 0 and at most 1.")
        if self.programs < 1:
            raise ConfigError(f"--agreement.programs is {self.programs}; it must be at least 1.")

    def threshold(self, problem: Row) -> float:
        """Smallest agreement for this problem."""
        rating = problem.get("rating")
        return self.hard if rating is not None and float(rating) > self.hard_rating else self.at_least


@dataclass(frozen=True)
class Vote:
    """The result of a vote.

    Fields:
        vector: the most common whole vector; None if every candidate failed somewhere.
        agreement: its share of all candidates.
        refusal: why it labels nothing; "" if it does.
    """

    vector: Vector | None
    agreement: float
    refusal: str


def vector_of(outcomes: Sequence[Outcome], reads: bool) -> Vector:
    """The outputs in a form in which equal ones are equal.

    Args:
        reads: whether the program reads and prints; blanks at the ends of lines and blank lines at the end do not count
            then, as in rewards.CodeTests.
    """

    def form(outcome: Outcome) -> str | None:
        if outcome.status != "ok":
            return None
        if not reads:
            return literal(outcome.value)
        return "\n".join(line.rstrip() for line in outcome.value.rstrip().split("\n"))

    return tuple(map(form, outcomes))


def vote(vectors: Sequence[Vector], programs: Sequence[str], total: int, threshold: float, different: int) -> Vote:
    """Vote on whole vectors. One with a failure agrees with nobody, not even with its own kind.

    Args:
        vectors: of the candidates that ran.
        programs: their texts.
        total: number of all candidates, M, also those without a program.
        threshold: smallest agreement.
        different: number of different programs that must agree.
    """
    groups: dict[Vector, list[str]] = {}
    for vector, program in zip(vectors, programs, strict=True):
        if None not in vector:
            groups.setdefault(vector, []).append(program)
    if not groups:
        return Vote(None, 0.0, "every candidate failed on an input")
    ordered = sorted(groups, key=lambda vector: len(groups[vector]), reverse=True)
    best, agreement = ordered[0], len(groups[ordered[0]]) / total
    refusal = ""
    if agreement < threshold - 1e-9:
        refusal = "agreement below the threshold"
    elif len(ordered) > 1 and len(groups[ordered[1]]) == len(groups[best]):
        refusal = "two output vectors are equally common"
    elif len(set(groups[best])) < different:
        refusal = "too few different programs agree"
    return Vote(best, agreement, refusal)


def program_in(problem: Row, text: str) -> tuple[Program | None, str]:
    """(the program in a candidate's text, "" or why it has none)."""
    entry = problem.get("entry_point")
    if not entry:
        code = code_of(text)
        return (Program(code), "") if code.strip() else (None, "no code")
    prompt = problem.get("code_prompt") or (problem["prompt"] if isinstance(problem["prompt"], str) else "")
    defined = re.compile(rf"^(?:async +def|def|class) +{re.escape(entry)}\b|^{re.escape(entry)} *=", re.MULTILINE)
    if not defined.search(prompt) and not defined.search(code_of(text)):
        return None, "no function"
    return Program(program_of(prompt, text, entry), entry), ""
