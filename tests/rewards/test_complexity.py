"""Text functions take time linear in their input, and little: each is measured on hostile texts of two sizes.

The ratio of the two decides, and the ratio to a plain loop over the same text.
"""

import math
import re
import time
from collections.abc import Callable

import pytest

from rewards.number_text import plain
from tests.rewards.text_functions import ALONE, NOT_MEASURED, WITH, measured, text_functions

#: characters of the smaller text; the larger has four times as many
SIZE = 1500
#: of the two times; 4 is linear, 16 quadratic
STEEPEST = 8.0
#: loops over the characters in whose time a function ends. 20 ms for 16,000 characters are 50 of them; twice as many,
#: because other work on the machine slows a function more than a loop.
LOOPS = 100
#: functions whose time is that of a tokenizer, of which only the growth is measured
TOKENIZERS = ("policies.prompt_encoding.",)
#: pieces of which hostile texts are made: what is repeated, and what follows once
PIECES = [
    " ", "\n", " \n", "\t", ".", "....x", "!?", "a", "a ", "A", "A ", "A or ", "not A ", "(", "((", "[", "{", "}", "{}",
    "()", "[]", "*", "**", "*a", "-", "- ", "_", "$", "$$", "$a",
    "\\", "\\(", "\\[", "\\boxed{", "\\boxed{1}", "\\boxed{1} and ", "\\boxed", "\\frac", "\\frac{1}{", "\\frac1",
    "\\text{", "\\text{a}", "\\left(", "\\sqrt", "\\begin{pmatrix}",
    "\\pm", "\\cup", "\\!", "\\!\\", "=", "1=", "<", "<<", ">>", "<a", "<think>", "</think>", "<answer>", "</answer>",
    "answer", "answer is ", "answer: ", "the answer is A ",
    "option", "is ", "0", "9", "1,", "1,111", "1.", ".1", "1e", "1e5", "1/", "1/1", "-1", "1 ", "1:", "1,1 ", "12:34 ",
    "'", "\"", "'a", "`", "```", "```\n", "~", "\u2212", "\u0663",
    "\u00bd", "\u00b2", "\u221a", "\u221a(", "\u4e00", "\u7b54\u6848", "\u7b54\u6848\u662f", "yes ", "no", "P.S.",
    "P.S. ", "user:", "user :", "Assistant", "{\"a\":", "[1,", "def f", "\n\n",
    "    ", "; ", ", ", " and ", "x+", "x^", "x^{", "\\x", "%", "\\%", "5 cm ", "^\\circ", "degrees", "...",
]  # fmt: skip
#: what follows the repeated piece: most patterns fail at one of them only
ENDS = ("", "x")
#: what many patterns begin with, before what they repeat
STARTS = [
    "<<",
    "\\boxed{",
    "\\boxed",
    "```json\n",
    "```",
    "[",
    "*",
    "**",
    "$",
    "\\(",
    "\\text{",
    "\\frac{",
    "answer",
    "(",
    "{",
    "1",
    "<think>",
    "<answer>",
    '"',
    "P.S.",
    "def f(",
    "-",
]
#: (start, repeated piece, end)
HOSTILE = [("x ", piece, end) for piece in PIECES for end in ENDS] + [
    (start, piece, end) for start in STARTS for piece in ("a", " ", "1", "\n", "a ") for end in ENDS
]
FUNCTIONS = measured()


def seconds(function: Callable[[str], object], text: str, repeats: int, measurements: int = 3) -> float:
    """Least CPU time of some measurements, each of so many calls."""
    times = []
    for _ in range(measurements):
        started = time.process_time()
        for _ in range(repeats):
            function(text)
        times.append(time.process_time() - started)
    return min(times)


def texts(start: str, piece: str, end: str) -> tuple[str, str]:
    """A smaller and a larger text."""
    small, large = (start + piece * (size // len(piece)) + end for size in (SIZE, 4 * SIZE))
    return small, large


def growth(function: Callable[[str], object], small: str, large: str) -> float:
    """Time for the larger text over that for the smaller."""
    repeats = max(1, round(3e-3 / max(seconds(function, large, 1), 1e-6)))
    return seconds(function, large, repeats) / max(seconds(function, small, repeats), 1e-9)


def loop(text: str) -> int:
    """The unit of LOOPS."""
    blanks = 0
    for character in text:
        blanks += character == " "
    return blanks


def faults(
    function: Callable[[str], object], hostile: list[tuple[str, str, str]], loops_allowed: float = LOOPS
) -> dict[tuple[str, str, str], str]:
    """Texts on which the function is too slow. Measured again are those that take much longer than most, or long."""
    spent = {parts: seconds(function, texts(*parts)[1], 1, measurements=1) for parts in hostile}
    usual, found = sorted(spent.values())[len(spent) // 2], {}
    for parts, time_spent in spent.items():
        small, large = texts(*parts)
        if time_spent > max(4 * usual, 5e-4) and growth(function, small, large) > STEEPEST:
            ratio = min(growth(function, small, large) for _ in range(3))  # other work disturbs
            if ratio > STEEPEST:
                found[parts] = f"grows {ratio:.1f} times with a text four times as long"
        read = plain(large)  # what is read: a character such as one half stands for eleven
        if time_spent > loops_allowed / 2 * seconds(loop, read, 1):
            loops = min(seconds(function, large, 1) / seconds(loop, read, 1) for _ in range(3))
            if loops > loops_allowed:
                found[parts] = f"takes as long as {loops:.0f} loops over its characters"
    return found


def allowed(name: str) -> float:
    """LOOPS of a function."""
    return math.inf if name.startswith(TOKENIZERS) else LOOPS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_time_grows_no_faster_than_the_text(name):
    """On every fourth text; which ones differs from function to function."""
    start = sum(map(ord, name)) % 4
    assert faults(FUNCTIONS[name], HOSTILE[start::4], allowed(name)) == {}


@pytest.mark.long
def test_nor_on_any_of_the_texts():
    assert {
        name: found for name, function in FUNCTIONS.items() if (found := faults(function, HOSTILE, allowed(name)))
    } == {}


def test_every_function_that_takes_a_text_is_measured():
    """A new one fails here until it has a row in tests/rewards/text_functions.py."""
    rows = [*ALONE, *WITH, *(name for names in NOT_MEASURED.values() for name in names)]
    rows += [name for name in FUNCTIONS if name.startswith("rewards.instructions.")]
    assert len(rows) == len(set(rows)) and set(rows) == set(text_functions())


@pytest.mark.parametrize("pattern", [r"\s*\d", r"(?:a|b)*c", r"<[^>]*\w[^>]*>"])
def test_the_measurement_notices_quadratic_time(pattern):
    piece = {"\\": " ", "(": "a", "<": "<"}[pattern[0]]
    assert growth(re.compile(pattern).search, *texts("", piece, "x")) > STEEPEST
    assert growth(re.compile(r"\d").search, *texts("", piece, "x")) < STEEPEST


def test_the_measurement_notices_a_slow_function():
    slow = faults(lambda text: [loop(text) for _ in range(2 * LOOPS)], HOSTILE[:2])
    assert len(slow) == 2 and all("loops over its characters" in found for found in slow.values())
