"""When two prompts are the same, and which side of a split a prompt belongs to."""

from collections.abc import Iterable
from typing import Any

from support.errors import ConfigError
from support.files import fingerprint
from support.seeding import derive_seed

ROLES = ("system", "developer", "user", "assistant", "tool")


def check_prompt(prompt: Any, where: str) -> None:
    """Refuse what is neither a text nor a list of chat messages. Raises ConfigError, naming where it came from."""
    for message in prompt if isinstance(prompt, list) and prompt else [] if isinstance(prompt, str) else [prompt]:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise ConfigError(
                f"{where} holds {repr(message)[:80]} ({type(message).__name__}); a prompt is a text, or a list of messages with a `role` ({', '.join(ROLES)}) and a text as `content`."
            )


def normalised(prompt: Any) -> str:
    """A prompt without what does not make it another prompt: case, white space, chat markup."""
    text = prompt if isinstance(prompt, str) else " ".join(str(message.get("content", "")) for message in prompt)
    return " ".join(text.lower().split())


def prompt_fingerprints(prompts: Iterable[Any]) -> set[str]:
    """Short fingerprints of the normalised prompts."""
    return {fingerprint([text])[:16] for text in {normalised(prompt) for prompt in prompts}}


def split_fingerprint(prompts: Iterable[Any]) -> str:
    """One fingerprint of a split, whatever the order of its prompts."""
    return fingerprint(sorted(normalised(prompt) for prompt in prompts))


def split_by_prompt(rows: list[dict[str, Any]], share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(kept, held out) rows; all rows of a prompt are on one side, chosen by a hash of the normalised prompt."""
    held = [derive_seed("preference split", normalised(row["prompt"])) % 10_000 < share * 10_000 for row in rows]
    return [r for r, h in zip(rows, held, strict=True) if not h], [r for r, h in zip(rows, held, strict=True) if h]
