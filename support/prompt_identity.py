"""Identity of prompts: their check, their normal form and fingerprints, and splits that keep equal prompts together."""

import itertools
import unicodedata
from collections.abc import Iterable
from typing import Any

from support.errors import ConfigError
from support.files import fingerprint
from support.seeding import derive_seed

ROLES = ("system", "developer", "user", "assistant", "tool")
#: decompositions that change the meaning: 5² is not 52, and ½ not 1/2 behind another digit
_MEANINGFUL = ("<super>", "<sub>", "<fraction>")
#: characters that show nothing although their category is not one of formats or controls: joiners, fillers, selectors
_INVISIBLE = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810)}
_INVISIBLE |= {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}


class _Forms(dict[int, str]):
    """The form of every character in which prompts are compared, for `str.translate`; "" for an invisible one."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character.isspace():
            form = " "
        elif unicodedata.category(character) in ("Cf", "Cc") or code in _INVISIBLE:
            form = ""
        elif unicodedata.decomposition(character).startswith(_MEANINGFUL):
            form = character
        else:
            form = unicodedata.normalize("NFKC", character)
        self[code] = form
        return form


_FORMS = _Forms()


def check_prompt(prompt: Any, where: str) -> None:
    """Raise ConfigError for a prompt that is neither a text nor a list of chat messages.

    Args:
        where: the place that the message names, e.g. "row 3 of the file".
    """
    if isinstance(prompt, str):
        return
    messages = prompt if isinstance(prompt, list) else []
    for message in messages or [prompt]:
        if (
            not messages
            or not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise ConfigError(
                f"{where} holds {repr(message)[:80]} ({type(message).__name__}); a prompt is a text, or a list of "
                f"messages with a `role` ({', '.join(ROLES)}) and a text as `content`."
            )


#: roles of what stands between the policy's turns in a response: messages, or a text within the policy's own message
BETWEEN = ("user", "tool", "output")


def check_response(response: Any, where: str) -> None:
    """Raise ConfigError for a response that is neither a text nor the turns of a conversation.

    Turns are messages with a `role` and a text as `content`, of which the first and the last are the assistant's. In
    between stand messages of others (user, tool), or texts that follow the assistant's within its message (output). A
    turn of the assistant with `learned` false is context, such as an answer that is wrong.
    """
    if isinstance(response, str):
        return
    turns = list(response) if isinstance(response, list | tuple) else []
    roles = [str(turn.get("role")) if isinstance(turn, dict) else "" for turn in turns]
    known = bool(turns) and {*roles} <= {"assistant", *BETWEEN} and roles[0] == roles[-1] == "assistant"
    mixed = any("assistant" not in pair and "output" in pair and len({*pair}) > 1 for pair in itertools.pairwise(roles))
    if not known or mixed or not all(isinstance(turn.get("content"), str) for turn in turns):
        raise ConfigError(
            f"{where} has {str(response)[:80]!r} as its response; it must be a text, or a list of turns with a `role` "
            f"(assistant, {', '.join(BETWEEN)}) and a text as `content` that begins and ends with the assistant's and "
            "has no output beside a message of others. Correct or drop the row."
        )


def normalised(prompt: Any) -> str:
    """The prompt's text without roles, in a form that is equal for prompts that count as the same.

    Case, kinds and numbers of spaces, invisible characters, and different encodings of the same characters in Unicode
    (composed or not, ligatures, full-width letters) do not count. Models still get the text as it is.
    """
    text = unicodedata.normalize("NFC", _text(prompt)).translate(_FORMS).casefold()
    return " ".join(unicodedata.normalize("NFC", text).split())


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " ".join(str(message.get("content", "")) for message in prompt)


def prompt_fingerprints(prompts: Iterable[Any]) -> set[str]:
    """Short fingerprints of the normalised prompts."""
    return {_short(text) for text in {normalised(prompt) for prompt in prompts}}


def known_fingerprints(prompts: Iterable[Any]) -> set[str]:
    """The fingerprints of prompts, also in the form of earlier versions, under which a record may hold them."""
    prompts = list(prompts)
    return prompt_fingerprints(prompts) | {_short(" ".join(_text(prompt).lower().split())) for prompt in prompts}


def _short(text: str) -> str:
    return fingerprint([text])[:16]


def split_fingerprint(prompts: Iterable[Any]) -> str:
    """One fingerprint of a split, independent of the order of its prompts."""
    return fingerprint(sorted(normalised(prompt) for prompt in prompts))


def split_by_prompt(
    rows: list[dict[str, Any]], held_out_fraction: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split rows into (kept, held out) by a hash of the normalised prompt, so all rows of a prompt are on one side.

    Args:
        held_out_fraction: expected fraction of the prompts that is held out, 0 to 1.
    """
    kept: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for row in rows:
        bucket = derive_seed("preference split", normalised(row["prompt"])) % 10_000
        (held_out if bucket < held_out_fraction * 10_000 else kept).append(row)
    return kept, held_out
