"""Inputs of a programming problem, by its generator, its validator and a range of scales (rStar-Coder)."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from assets.many_inputs import Outcome, Program, RunLimits, literal, run_many
from rewards.sandbox import guest
from support.errors import ConfigError

Row = dict[str, Any]
#: failures of a generator or a validator after which it is given up
MAX_FAILURES = 10


@dataclass(frozen=True)
class InputPlan:
    """The number and the size of the inputs of a problem.

    Args:
        largest_exponent: the scales are 1 to 9 and the powers of ten up to 10 to this exponent.
        per_scale: inputs asked of the generator per scale; one that it has made before does not count.
        at_least: a problem with fewer valid inputs is dropped.
        max_kb: maximum size of an input, in KB.
    """

    largest_exponent: int = 5
    per_scale: int = 5
    at_least: int = 50
    max_kb: int = 1024

    def __post_init__(self) -> None:
        for name in ("largest_exponent", "per_scale", "at_least", "max_kb"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--inputs.{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def scales(self) -> list[int]:
        """C = {1..9} and {10^i, i <= largest_exponent}."""
        return [*range(1, 10), *(10**exponent for exponent in range(1, self.largest_exponent + 1))]


@dataclass
class Inputs:
    """The valid inputs of a problem.

    Fields:
        values: lists of arguments for a function, texts for a program that reads and prints.
        counts: scale -> what happened -> number; the scale "given" is that of the column `inputs`.
    """

    values: list[Any] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)


def make_inputs(problem: Row, generator: str, plan: InputPlan, limits: RunLimits) -> Inputs:
    """Valid inputs of a problem, those of its column `inputs` first.

    Args:
        problem: `entry_point` for a function, `inputs` and `validator` are optional.
        generator: a program with `generate(scale, seed)`, which returns a list of arguments or a text, and perhaps
            `valid(...)`, which is called with them. "" if there are only the column's inputs.
    """
    scales: list[Any] = ["given"] * len(problem.get("inputs") or [])
    outcomes = [Outcome("ok", value) for value in problem.get("inputs") or []]
    if generator:
        asked = [[scale, number] for number in range(plan.per_scale) for scale in plan.scales]
        scales += [scale for scale, _ in asked]
        outcomes += run_many(Program(generator, "generate"), asked, limits, MAX_FAILURES)
    made, seen = Inputs(), set()
    candidates: list[tuple[str, Any]] = []
    for scale, outcome in zip(map(str, scales), outcomes, strict=True):
        counts = made.counts.setdefault(scale, Counter())
        value = outcome.value
        if outcome.status != "ok":
            counts[outcome.status] += 1
        elif not isinstance(value, list | tuple if problem.get("entry_point") else str):
            counts["wrong type"] += 1
        elif len(text := _text(value)) > plan.max_kb << 10:
            counts["too long"] += 1
        elif not text or text in seen:
            counts["duplicate" if text else "not plain data"] += 1
        else:
            seen.add(text)
            candidates.append((scale, list(value) if problem.get("entry_point") else value))
    accepted = _accepted(problem, generator, [value for _, value in candidates], limits)
    for (scale, value), verdict in zip(candidates, accepted, strict=True):
        made.counts[scale][verdict] += 1
        if verdict == "valid":
            made.values.append(value)
    return made


def _text(value: Any) -> str:
    """The value as text, "" for one that cannot be written."""
    try:
        json.dumps(guest.packed(value))
        return literal(value)
    except (ValueError, TypeError, RecursionError):
        return ""


def _accepted(problem: Row, generator: str, values: list[Any], limits: RunLimits) -> list[str]:
    """Per input: valid, invalid, or how the validator failed. Without a validator all are valid."""
    source = problem.get("validator") or generator
    arguments = values if problem.get("entry_point") else [[value] for value in values]
    outcomes = run_many(Program(source, "valid"), arguments, limits, MAX_FAILURES)
    if not problem.get("validator") and outcomes and outcomes[0].status == "no function":
        return ["valid"] * len(values)
    named = {True: "valid", False: "invalid"}
    return [
        named[outcome.value is True] if outcome.status == "ok" else f"validator: {outcome.status}"
        for outcome in outcomes
    ]
