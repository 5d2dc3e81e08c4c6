"""Untrusted programs on many inputs, in one run of the sandbox per program (docs/sandbox.md)."""

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rewards.sandbox import Limits, Result, SandboxError, guest, run
from support.errors import ConfigError

#: size of all outputs of a run together, in KB
ALL_OUTPUT_KB = 16 << 10
TRIES = 3


@dataclass(frozen=True)
class Program:
    """A program of Python.

    Fields:
        source: its text.
        entry: the function that is called with an input's values; None for a program that reads an input and prints.
    """

    source: str
    entry: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a program on one input.

    Fields:
        status: ok, or a failure: error, timeout, memory, output, syntax error, no function, not plain data, not run.
        value: what the function returned, or the text that the program printed; None after a failure.
        seconds: CPU seconds.
    """

    status: str
    value: Any = None
    seconds: float = 0.0


@dataclass(frozen=True)
class RunLimits:
    """Limits of a program that runs on many inputs.

    Args:
        input: limits on one input; its output_kb is the maximum size of one output.
        total_s: seconds for all inputs together.
        allow_weaker: accept weaker protections, see docs/sandbox.md.
    """

    input: Limits = Limits(wall_s=2.0, cpu_s=2.0, output_kb=256)
    total_s: float = 120.0
    allow_weaker: bool = False

    def __post_init__(self) -> None:
        if not self.total_s > 0:
            raise ConfigError(f"limits.total_s is {self.total_s}; set it above 0.")


@cache
def _runner() -> str:
    text = Path(__file__).with_name("inside_sandbox.py").read_text()
    future = "from __future__ import annotations\n"
    before, _, after = text.partition(future)
    helpers = inspect.getsource(guest.packed) + inspect.getsource(guest.unpacked)
    return f"{before}{future}{helpers}{after}"


def run_many(
    program: Program, inputs: Sequence[Any], limits: RunLimits | None = None, max_failures: int = 1
) -> list[Outcome]:
    """Run a program on every input.

    Args:
        inputs: lists of arguments for a function, texts for a program that reads and prints.
        limits: of the program.
        max_failures: number of failures after which the other inputs are not run.

    Raises:
        ConfigError: this machine lacks a protection.
        SandboxError: the sandbox itself failed, three times.
    """
    limits = limits or RunLimits()
    one, count = limits.input, len(inputs)
    if not count:
        return []
    arguments = [program.source, program.entry, one.wall_s, int(one.cpu_s) or 1, one.output_kb << 10, max_failures]
    text = f"{_runner()}\nmain(*{arguments!r})\n"
    values = inputs if program.entry is None else [guest.packed(list(each)) for each in inputs]
    whole = replace(
        one,
        wall_s=min(limits.total_s, one.wall_s * count + 2),
        cpu_s=max(one.cpu_s, limits.total_s),
        output_kb=min(ALL_OUTPUT_KB, (one.output_kb + 1) * count * 2),
    )
    lines = "".join(json.dumps(value) + "\n" for value in values)
    result = _tried(text, lines, whole, limits.allow_weaker)
    outcomes = [_outcome(line, program.entry) for line in result.stdout.split("\n")[:-1]][:count]
    if outcomes and outcomes[-1].status in ("syntax error", "no function"):
        return outcomes[-1:] * count
    if len(outcomes) < count and sum(each.status != "ok" for each in outcomes) < max_failures:
        outcomes.append(Outcome("error" if result.status == "ok" else result.status))  # it has ended its runner
    failed = [place for place, each in enumerate(outcomes) if each.status != "ok"]
    counted = outcomes[: failed[max_failures - 1] + 1] if len(failed) >= max_failures else outcomes
    return counted + [Outcome("not run")] * (count - len(counted))


def _tried(text: str, lines: str, limits: Limits, allow_weaker: bool) -> Result:
    for attempt in range(TRIES):
        try:
            return run(text, lines, limits, allow_weaker=allow_weaker)
        except SandboxError:
            if attempt == TRIES - 1:
                raise
    raise AssertionError


def _outcome(line: str, entry: str | None) -> Outcome:
    """The outcome that a line states. Lines may be forged, so nothing about their form is taken for granted."""
    try:
        status, value, seconds = json.loads(line)
        failed = str(status) != "ok"
        value = None if failed else str(value) if entry is None else guest.unpacked(json.loads(value))
        if not failed:
            literal(value)
        return Outcome(str(status)[:20], value, float(seconds))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, OverflowError):
        return Outcome("not plain data")


def literal(value: Any) -> str:
    """Plain data as Python text that is equal for equal values: sets and dicts are sorted.

    Raises:
        ValueError: for NaN, a number with too many digits, or a text that is not Unicode.
    """
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("NaN equals nothing")
        return repr(value + 0.0) if math.isfinite(value) else f"{'-' * (value < 0)}1e999"
    if isinstance(value, complex):
        return f"complex({literal(value.real)}, {literal(value.imag)})"
    if isinstance(value, list | tuple):
        items = ", ".join(map(literal, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if isinstance(value, set | frozenset):
        items = ", ".join(sorted(map(literal, value)))
        text = f"{{{items}}}" if items else "set()"
        return text if isinstance(value, set) else f"frozenset({text})"
    if isinstance(value, dict):
        pairs = sorted((literal(key), literal(item)) for key, item in value.items())
        return f"{{{', '.join(f'{key}: {item}' for key, item in pairs)}}}"
    if isinstance(value, str):
        value.encode()
    return repr(value)
