"""When two prompts are the same, and which side of a split a prompt belongs to."""

from collections.abc import Iterable
from typing import Any

from support.files import fingerprint
from support.seeding import derive_seed


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
