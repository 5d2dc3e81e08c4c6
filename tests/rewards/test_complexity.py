"""Text functions take time linear in their input: each is measured on hostile texts of two sizes, and the ratio of the
two decides."""

import re
import time
from collections.abc import Callable

import pytest

from callbacks.findings_at_start import CUED, MARKS, SPOKEN
from rewards import Format, LanguageConsistency, OnTopic, SatAssignment, ThinkAnswerFormat
from rewards.answers import answer_text, last_number
from rewards.choices import stated_letters
from rewards.code import code_of, program_of, same_output
from rewards.instructions import KINDS
from rewards.language import words_by_script
from rewards.math_algebra import NeedsAlgebra
from rewards.math_compare import Unreadable, grade
from rewards.math_text import answers_in, boxes, elements, is_text, key, last_box, spelled, words_of
from rewards.number_text import number_of, numbers, plain
from rewards.quantities import quantity
from rewards.self_verify import verdict_of
from rewards.still3 import action_count
from rewards.tasks import is_value
from rewards.think_json import object_text, strict_object
from rollouts import ends_open, text_batch

#: characters of the smaller text; the larger has four times as many
SIZE = 1500
#: of the two times; 4 is linear, 16 quadratic
STEEPEST = 8.0
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


def swallowed(function: Callable[[str], object]) -> Callable[[str], object]:
    """The function without the errors that it may raise for an answer."""

    def call(text: str) -> object:
        try:
            return function(text)
        except (NeedsAlgebra, Unreadable):
            return None

    return call


def of_a_reward(reward) -> Callable[[str], object]:
    row = {"id": "0", "prompt": "Which longer words are here?", "clause": "(A) & (!B)", "answer": "x"}
    return lambda text: reward.score(text_batch([text], [row]))


BOUNDS = {"at_least": 1}
INSTRUCTIONS = {
    "keywords": {"words": ["answer"]}, "forbidden_words": {"words": ["answer"]}, "letter": {"character": "a", **BOUNDS},
    "starts_with": {"phrase": "a"}, "ends_with": {"phrase": "a"},
    "case": {"which": "upper"}, "language": {"script": "LATIN"}, "one_of": {"options": ["a"]}, "json": {}, "quoted": {},
    "title": {}, "postscript": {}, "no_commas": {},
}  # fmt: skip
FUNCTIONS: dict[str, Callable[[str], object]] = {
    "answer_text": lambda text: answer_text(text, True),
    "ends_open": ends_open,
    "plain": plain,
    "numbers": numbers,
    "last_number": last_number,
    "number_of": number_of,
    "boxes": boxes,
    "last_box": last_box,
    "answers_in": answers_in,
    "spelled": lambda text: spelled.__wrapped__(text),
    "key": lambda text: key.__wrapped__(text),
    "words_of": lambda text: words_of.__wrapped__(text),
    "is_text": lambda text: is_text.__wrapped__(text),
    "quantity": lambda text: quantity.__wrapped__(text, True),
    "elements": elements,
    "grade a number": swallowed(lambda text: grade("42", text)),
    "grade words": swallowed(lambda text: grade("Evelyn", text)),
    "grade a list": swallowed(lambda text: grade("1, 2", text)),
    "grade in a box": swallowed(lambda text: grade("x+1", "\\boxed{" + text + "}")),
    "stated_letters": stated_letters,
    "verdict_of": verdict_of,
    "words_by_script": words_by_script,
    "object_text": object_text,
    "strict_object": strict_object,
    "code_of": code_of,
    "action_count": action_count,
    "program_of": lambda text: program_of("def f(x):\n", text, "f"),
    "same_output": lambda text: same_output(text, "1"),
    "is_value": is_value,
    "Format": of_a_reward(Format()),
    "ThinkAnswerFormat": of_a_reward(ThinkAnswerFormat()),
    "OnTopic": of_a_reward(OnTopic()),
    "SatAssignment": of_a_reward(SatAssignment()),
    "LanguageConsistency": of_a_reward(LanguageConsistency()),
    "marks of a chat": MARKS.search,
    "spoken prompts": SPOKEN.search,
    "cued prompts": CUED.search,
    **{
        f"instruction {kind}": (lambda text, kind=kind: KINDS[kind](text, **INSTRUCTIONS.get(kind, BOUNDS)))
        for kind in KINDS
    },
}


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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_time_grows_no_faster_than_the_text(name):
    """Compared are the texts that take much longer than most, or long at all; one that is linear takes a fraction of
    that."""
    function, spent = FUNCTIONS[name], {}
    for parts in HOSTILE:
        spent[parts] = seconds(function, texts(*parts)[1], 1, measurements=1)
    usual = sorted(spent.values())[len(spent) // 2]
    slow = [parts for parts, time_spent in spent.items() if time_spent > max(4 * usual, 5e-4) or time_spent > 2e-2]
    steep = {}
    for parts in slow:
        if growth(function, *texts(*parts)) > STEEPEST:
            steep[parts] = round(min(growth(function, *texts(*parts)) for _ in range(3)), 1)  # other work disturbs
    assert {parts: ratio for parts, ratio in steep.items() if ratio > STEEPEST} == {}


@pytest.mark.parametrize("pattern", [r"\s*\d", r"(?:a|b)*c", r"<[^>]*\w[^>]*>"])
def test_the_measurement_notices_quadratic_time(pattern):
    piece = {"\\": " ", "(": "a", "<": "<"}[pattern[0]]
    assert growth(re.compile(pattern).search, *texts("", piece, "x")) > STEEPEST
    assert growth(re.compile(r"\d").search, *texts("", piece, "x")) < STEEPEST
