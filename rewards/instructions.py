"""Instructions that a program can verify, as in IFEval (Zhou et al., arXiv 2311.07911)."""

import inspect
import json
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rewards.answers import answers
from rewards.base import Reward, needs
from rewards.language import words_by_script
from rollouts import RolloutBatch
from support.errors import ConfigError


def _between(count: int, at_least: int | None, at_most: int | None) -> bool:
    return (at_least is None or count >= at_least) and (at_most is None or count <= at_most)


def _times(word: str, text: str) -> int:
    """Number of occurrences of a whole word or phrase in a text, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def keywords(text: str, words: list[str], at_least: int = 1) -> bool:
    """Each of the words at least this many times."""
    return all(_times(word, text) >= at_least for word in words)


def forbidden_words(text: str, words: list[str]) -> bool:
    return not any(_times(word, text) for word in words)


def number_of_words(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Words are runs of letters, digits, apostrophes and hyphens."""
    return _between(len(re.findall(r"\w[\w'’-]*", text)), at_least, at_most)


def number_of_sentences(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """A sentence ends with . ! ? or the end of the text, but not with a full stop inside a number."""
    return _between(
        len([part for part in re.split(r"(?<![.!?…])[.!?…]++(?=\s|[\"'”’)]|$)", text) if re.search(r"\w", part)]),
        at_least,
        at_most,
    )


def number_of_paragraphs(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Paragraphs are separated by blank lines."""
    return _between(len([part for part in re.split(r"\n\s*\n", text) if part.strip()]), at_least, at_most)


def number_of_bullets(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Bullets are lines that begin with -, * or +, and a blank."""
    return _between(len(re.findall(r"^[^\S\n]*[-*+] +\S", text, re.MULTILINE)), at_least, at_most)


def number_of_placeholders(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Placeholders look [like this]."""
    return _between(len(re.findall(r"\[[^\[\]\n]+\]", text)), at_least, at_most)


def number_of_highlights(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Highlights look *like this* or **like this**."""
    return _between(len(re.findall(r"(\*{1,2})(?=[^\s*])([^*\n]*[^\s*])\1", text)), at_least, at_most)


def letter(text: str, character: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Number of occurrences of a letter, in either case."""
    return _between(text.lower().count(character.lower()), at_least, at_most)


def starts_with(text: str, phrase: str) -> bool:
    return text.startswith(phrase)


def ends_with(text: str, phrase: str) -> bool:
    return text.endswith(phrase)


def quoted(text: str) -> bool:
    """The whole text in double quotation marks."""
    return len(text) > 1 and text[0] == text[-1] == '"'


def title(text: str) -> bool:
    """A title <<like this>> at any place."""
    return any(re.search(r"\w", inner) for inner in re.findall(r"<<([^<>\n]*)>>", text))


def postscript(text: str, marker: str = "P.S.") -> bool:
    """A paragraph at the end that begins with the marker."""
    return re.search(rf"^[^\S\n]*{re.escape(marker)}\s*\S", text, re.MULTILINE) is not None


def is_json(text: str, keys: list[str] | None = None) -> bool:
    """JSON and nothing else, with or without a fence; an object with at least these keys if there are any."""
    first, newline, rest = text.partition("\n")
    fenced = newline and first.rstrip() in ("```", "```json") and rest.endswith("\n```")
    try:
        value = json.loads(rest.removesuffix("```") if fenced else text)
    except (ValueError, RecursionError):
        return False
    return keys is None or (isinstance(value, dict) and set(keys) <= set(value))


def case(text: str, which: Literal["lower", "upper"]) -> bool:
    return text == (text.lower() if which == "lower" else text.upper()) and any(c.isalpha() for c in text)


def capital_words(text: str, at_least: int | None = None, at_most: int | None = None) -> bool:
    """Words of two or more capital letters only."""
    words = re.findall(r"[^\W\d_]{2,}", text)
    return _between(sum(word.isupper() for word in words), at_least, at_most)


def language(text: str, script: str) -> bool:
    """All words in one script, e.g. LATIN or CYRILLIC, which can be determined without a language model."""
    scripts = words_by_script(text)
    return set(scripts) == {script}


def no_commas(text: str) -> bool:
    return "," not in text


def one_of(text: str, options: list[str]) -> bool:
    """One of the options, word for word."""
    return text in options


KINDS: dict[str, Callable[..., bool]] = {
    "json": is_json,
    **{
        kind.__name__: kind
        for kind in (
            keywords,
            forbidden_words,
            number_of_words,
            number_of_sentences,
            number_of_paragraphs,
            number_of_bullets,
            number_of_placeholders,
            number_of_highlights,
            letter,
            starts_with,
            ends_with,
            quoted,
            title,
            postscript,
            case,
            capital_words,
            language,
            no_commas,
            one_of,
        )
    },
}


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value that came from JSON has the type of a parameter: plain ones, lists, literals and unions."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is UnionType:
        return any(_is_a(value, part) for part in get_args(kind))
    if kind is int:  # tables turn a column with gaps into floats
        return not isinstance(value, bool) and (isinstance(value, int) or isinstance(value, float) and value % 1 == 0)
    return isinstance(value, kind)


def _arguments(instruction: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an instruction, without None, with which a table fills rows of different length."""
    return {name: value for name, value in instruction.items() if name != "kind" and value is not None}


class InstructionFollowing(Reward):
    """The fraction of a row's `instructions` that the text after the reasoning follows.

    `instructions` is a list of {kind, ...}, see KINDS. An empty text follows none.

    Args:
        graded: True for the fraction, False for 1 if all are followed and 0 otherwise (IFEval's prompt-level strict
            accuracy).
        weight, name: as in every reward.
    """

    is_correctness, span = True, (0.0, 1.0, False)

    def __init__(self, graded: bool = True, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.graded = graded

    def score(self, batch: RolloutBatch) -> list[float]:
        return [
            self._one(text, wanted) for text, wanted in zip(answers(batch), batch.column("instructions"), strict=True)
        ]

    def _one(self, text: str, wanted: list[dict[str, Any]]) -> float:
        followed = [
            bool(text) and KINDS[instruction["kind"]](text, **_arguments(instruction)) for instruction in wanted
        ]
        return sum(followed) / len(followed) if self.graded else float(all(followed))

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "instructions")
        where = f"the reward {self.name!r} (InstructionFollowing), row {row.get('id')!r}"
        if not isinstance(row["instructions"], list) or not row["instructions"]:
            raise ConfigError(f"{where}: `instructions` is not a list of at least one {{kind, ...}}; correct the row.")
        for instruction in row["instructions"]:
            kind = instruction.get("kind") if isinstance(instruction, dict) else instruction
            if not isinstance(kind, str) or kind not in KINDS or not isinstance(instruction, dict):
                raise ConfigError(
                    f"{where}: there is no instruction of the kind {kind!r}; use one of {', '.join(sorted(KINDS))}."
                )
            signature, arguments = inspect.signature(KINDS[kind]), _arguments(instruction)
            try:
                signature.bind("", **arguments)
            except TypeError as error:
                raise ConfigError(f"{where}: the instruction {kind!r} cannot take {arguments}: {error}.") from error
            kinds = get_type_hints(KINDS[kind])
            if wrong := [name for name, value in arguments.items() if not _is_a(value, kinds[name])]:
                raise ConfigError(
                    f"{where}: the instruction {kind!r} has {wrong[0]}: {arguments[wrong[0]]!r}, which is not of the "
                    f"type {inspect.formatannotation(kinds[wrong[0]])}; correct the row."
                )
            if {"at_least", "at_most"} <= set(signature.parameters) and not {"at_least", "at_most"} & set(arguments):
                raise ConfigError(f"{where}: the instruction {kind!r} needs at_least, at_most or both.")
