"""No regular expression of the project takes more than linear time, on texts made of its own characters.

The expressions are found in the sources, so a new one is measured without being named here.
"""

import re
import re._parser as parser
import string

import pytest

from datamodules import records_desk
from policies import prompt_encoding
from rewards import quantities
from tests.rewards.patterns import direct_calls, named_patterns, uses_of_names
from tests.rewards.test_complexity import STEEPEST, growth, seconds

#: patterns that are made at run time: (module, source) -> examples
MADE = {
    ("rewards.answers", "pattern"): [],  # the user's own, of the configuration
    ("datamodules.prompt_form", "pattern"): [],  # likewise
    ("policies.packing", "unused"): ["window", "$."],
    ("rewards.code", "head"): ["^def f\\(", "(?m)^def f\\b"],
    ("rewards.instructions", "f'(?<!\\\\w){re.escape(word)}(?!\\\\w)'"): [
        "(?<!\\w)answer(?!\\w)",
        "(?<!\\w)aaa(?!\\w)",
    ],
    ("rewards.instructions", "f'^[^\\\\S\\\\n]*{re.escape(marker)}\\\\s*\\\\S'"): ["(?m)^[^\\S\\n]*P\\.S\\.\\s*\\S"],
    ("rewards.quantities", "f'([-+]?)\\\\s?({_CURRENCY})\\\\s?'"): [f"([-+]?)\\s?({quantities._CURRENCY})\\s?"],
    ("rewards.self_verify", "_pattern(words)"): ["\\b(yes|no)\\b", "\\b(right|wrong)\\b"],
    ("rewards.self_verify", "_pattern(self.words)"): ["\\b(aa|a a)\\b"],
    ("rewards.still3", "f\"\\\\b(?:{'|'.join(map(re.escape, words))})\\\\b\""): ["\\b(?:wait|let me|therefore)\\b"],
    ("policies.prompt_encoding", "f\"(?=(?:{'|'.join(words)}))(.)\""): ["(?=(?:<eos>|</think>))(.)"],
    ("policies.tokenizer", "f'\\\\b{re.escape(argument)}\\\\b'"): ["\\benable_thinking\\b"],
    ("policies.prompt_encoding", "f'{_CUT}+'"): [f"{prompt_encoding._CUT}+"],
    ("datamodules.perturbations", "f'(?<![\\\\w\\\\\\\\-]){noun}(?:e?s)?(?![\\\\w-])'"): [
        "(?<![\\w\\\\-])pencil(?:e?s)?(?![\\w-])"],
    ("datamodules.perturbations", "f'(?<![\\\\w\\\\\\\\-]){old}(?![\\\\w-])'"): ["(?<![\\w\\\\-])Tom(?![\\w-])"],
    ("datamodules.perturbations", "f'\\\\b{name}\\\\b'"): ["\\bTom\\b"],
    (
        "datamodules.perturbations",
        "f'\\\\b{name}(?: [A-Z]\\\\w|-)|[A-Za-z]-{name}\\\\b|(?<![.?!:])[^\\\\S\\\\n][A-Z][\\\\w.]* {name}\\\\b'",
    ): ["\\bTom(?: [A-Z]\\w|-)|[A-Za-z]-Tom\\b|(?<![.?!:])[^\\S\\n][A-Z][\\w.]* Tom\\b"],
    (
        "datamodules.perturbations",
        "f\"(?<![\\\\w\\\\\\\\-])(?:{'|'.join(map(re.escape, changes))})(?![\\\\w-])\"",
    ): ["(?<![\\w\\\\-])(?:Tom|pencils)(?![\\w-])"],
    ("datamodules.records_desk", "_FACT"): [records_desk._FACT],
    ("datamodules.records_desk", "_FACT + ' \\\\.'"): [records_desk._FACT + " \\."],
    ("datamodules.records_desk", "_REFUSAL + ' \\\\.'"): [records_desk._REFUSAL + " \\."],
    ("datamodules.records_desk", "_REFUSAL + ' but ' + _FACT + ' \\\\.'"): [
        f"{records_desk._REFUSAL} but {records_desk._FACT} \\."
    ],
}  # fmt: skip
#: read no text of others: the parser's own messages, and the project's own files
OWN_TEXTS = ("cli.suggestions", "support.papers")
#: characters of the smaller text; the larger has four times as many
SIZE = 500


def collected():
    """name -> (pattern, methods)."""
    found, uses = {}, uses_of_names()
    for (module, name), patterns in named_patterns().items():
        for number, pattern in enumerate(patterns):
            found[f"{module}.{name}" + f"[{number}]" * (len(patterns) > 1)] = (pattern, uses.get(name, {"finditer"}))
    for module, method, source, value in direct_calls():
        for number, text in enumerate([value] if value is not None else MADE.get((module, source), [])):
            key = f"{module} {method} {source}" + f" {number}" * bool(number)
            found[key] = (re.compile(text), {"finditer" if method == "compile" else method})
    return {name: entry for name, entry in found.items() if not name.startswith(OWN_TEXTS)}


PATTERNS = collected()


def test_no_pattern_is_forgotten():
    made = {(module, source) for module, _, source, value in direct_calls() if value is None}
    assert made == set(MADE), "describe what is new in MADE, with examples"
    assert len(PATTERNS) > 120


def pieces(pattern):
    """Texts that a pattern may match long parts of: its characters, pairs of them, and its runs of letters."""
    characters, runs = {" ": None, "a": None, "1": None, "\n": None}, []

    def walk(items):
        run = ""
        for operation, value in items:
            name = str(operation)
            if name == "LITERAL":
                characters[chr(value)] = None
                run += chr(value)
                continue
            runs.append(run)
            run = ""
            if name == "RANGE":
                characters[chr(value[0])] = None
            elif name == "NOT_LITERAL":
                characters[chr(value)] = None
            elif isinstance(value, (list, parser.SubPattern)):
                walk(value)
            elif isinstance(value, tuple):
                for part in value:
                    for inner in part if isinstance(part, list) else [part]:
                        if isinstance(inner, parser.SubPattern):
                            walk(inner)
        runs.append(run)

    walk(parser.parse(pattern.pattern, pattern.flags))
    letters = [c for c in characters if c in string.ascii_letters][:3]
    few = [c for c in characters if c not in string.ascii_letters][:11] + letters
    whole = [run for run in dict.fromkeys(runs) if len(run) > 1][:8]
    pairs = [first + second for first in few[:9] for second in few[:9] if first != second]
    return few + whole + pairs, ["", *whole[:4], *few[4:9]]


def calls(pattern, methods):
    """The pattern as it is used, to be measured."""

    def call(text):
        for method in methods:
            if method in ("sub", "subn"):
                pattern.sub("", text)
            elif method == "finditer":
                for _ in pattern.finditer(text):
                    pass
            else:
                getattr(pattern, method)(text)

    return call


def steep(pattern, methods, most=None):
    """(start, repeated piece) -> growth, where it is above that of linear time; of all texts, or of so many."""
    function, spent, found = calls(pattern, methods), {}, {}
    repeated, starts = pieces(pattern)

    def text(size, start, piece):
        return start + piece * (size // len(piece)) + "\x00"

    tried = [(start, piece) for piece in repeated for start in starts]
    for parts in tried[:: max(1, len(tried) // most)] if most else tried:
        spent[parts] = seconds(function, text(4 * SIZE, *parts), 1, measurements=1)
    usual = sorted(spent.values())[len(spent) // 2]
    for parts, time in spent.items():
        if time > max(4 * usual, 1e-3):
            pair = text(SIZE, *parts), text(4 * SIZE, *parts)
            if (
                growth(function, *pair) > STEEPEST
                and (ratio := min(growth(function, *pair) for _ in range(3))) > STEEPEST
            ):
                found[parts] = round(ratio, 1)
    return found


@pytest.mark.parametrize("name", PATTERNS)
def test_time_grows_no_faster_than_the_text(name):
    assert steep(*PATTERNS[name], most=24) == {}


@pytest.mark.long
def test_nor_on_any_text_of_its_characters():
    assert {name: found for name, entry in PATTERNS.items() if (found := steep(*entry))} == {}


@pytest.mark.parametrize("text", [r"\s*\d", r"(?:a|b)*c", r"x*y", r"\{[^}]*\}$"])
def test_the_measurement_notices_quadratic_time(text):
    assert steep(re.compile(text), {"search"}) != {}
