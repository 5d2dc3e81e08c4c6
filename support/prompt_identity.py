"""Identity of prompts: their check, their normal form and fingerprints, and splits that keep equal prompts together."""

from collections.abc import Iterable
from typing import Any

from support.errors import ConfigError
from support.files import fingerprint
from support.seeding import derive_seed

ROLES = ("system", "developer", "user", "assistant", "tool")


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


def normalised(prompt: Any) -> str:
    """The prompt's text in lower case, with single spaces, without roles: equal for prompts that count as the same."""
    text = prompt if isinstance(prompt, str) else " ".join(str(message.get("content", "")) for message in prompt)
    return " ".join(text.lower().split())


def prompt_fingerprints(prompts: Iterable[Any]) -> set[str]:
    """Short fingerprints of the normalised prompts."""
    return {fingerprint([text])[:16] for text in {normalised(prompt) for prompt in prompts}}


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
