"""Encoding of prompts and completions in which data stays text: "<|im_end|>" in a prompt does not end the user's turn.

A tokenizer turns the spelling of a control token into the token, wherever the text came from. Here every such spelling
in the content of a message, a completion or a demonstration is cut behind its first character, and the pieces are
encoded one by one, so that none of them spells a control token. The chat template's own text is left whole, and texts
without such spellings get exactly the ids that the tokenizer gives them.
"""

import json
import re
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from support.errors import ConfigError
from support.prompt_identity import check_prompt

Prompt = str | list[dict[str, str]]
#: The reasoner's markers stay tokens in a model's texts (responses of demonstrations, completions, assistants' turns),
#: never in a user's.
MARKERS = ("<think>", "</think>")
#: a private character of Unicode that marks a cut, repeated until the mark occurs in no text
_CUT = "\ue000"


@lru_cache(maxsize=8)
def _spellings(tokenizer: Any, template: str | None, keep: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern for the first character of a control token's spelling; None for a tokenizer without control tokens.

    Added words that are not control tokens (runs of spaces, "<table>") are left out.
    """
    control = set()
    for token in tokenizer.added_tokens_decoder.values():
        marks = re.fullmatch(r"<[|｜].*[|｜]>", token.content) or (
            re.fullmatch(r"[<\[].*[>\]]", token.content) and token.content in (template or "")
        )
        if token.special or marks or token.content in MARKERS:
            control.add(token.content.strip())
    control -= set(keep)
    words = [re.escape(word) for word in sorted(control) if len(word) > 1]
    return re.compile(f"(?=(?:{'|'.join(words)}))(.)", re.DOTALL) if words else None


def encode_content(tokenizer: Any, text: str, keep: tuple[str, ...] = MARKERS) -> list[int]:
    """Token ids of a model's text (a completion or a demonstration), without the tokenizer's beginning and end.

    Args:
        keep: spellings of control tokens that stay tokens.
    """
    mark = unused_mark([text])
    return encode_cut(tokenizer, cut_content(tokenizer, text, keep, mark), mark)


def encode_cut(tokenizer: Any, text: str, mark: str) -> list[int]:
    """Token ids of a text that is cut at a mark, piece by piece."""
    return [i for piece in text.split(mark) for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt; a string becomes a user's message when the tokenizer has a chat template.

    An end token that the tokenizer puts behind every text is left out.
    """
    if tokenizer.chat_template or not isinstance(prompt, str):
        return encode_cut(tokenizer, *render(tokenizer, prompt))
    mark = unused_mark([prompt])
    first, *others = cut_content(tokenizer, prompt, (), mark).split(mark)
    encoded = tokenizer(first, return_special_tokens_mask=True)
    ids: list[int] = encoded["input_ids"]
    bare = tokenizer(first, add_special_tokens=False)["input_ids"]
    # The tokenizer's beginning goes before the first piece, its end behind the last.
    tokens = encoded["special_tokens_mask"]
    place = (tokens.index(0) if 0 in tokens else 0) + len(bare)
    end = [i for i in ids[place:] if i != tokenizer.eos_token_id]  # a completion follows, so nothing has ended
    return [*ids[:place], *encode_cut(tokenizer, mark.join(others), mark), *end]


def render(tokenizer: Any, prompt: Prompt) -> tuple[str, str]:
    """(the chat template's text of a prompt, the mark at which the text must be cut before it is encoded).

    A last message of the assistant is the beginning of the completion: its turn stays open.

    Raises:
        ConfigError: for a prompt that is neither a text nor messages, or that the template refuses, and for messages
            under a tokenizer without a template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the prompt {str(prompt)[:80]!r} is a list of messages, but the tokenizer {tokenizer.name_or_path} has no "
            "chat template. Give prompts as plain texts, or set tokenizer.chat_template and save the tokenizer into "
            "the model's folder."
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    check_prompt(messages, "a prompt")
    mark = unused_mark(messages)
    cut = []
    for message in messages:
        keep = MARKERS if message["role"] == "assistant" else ()
        cut.append(cut_content(tokenizer, message, keep, mark) | {"role": message["role"]})
    continues = cut[-1]["role"] == "assistant"
    if continues and not cut[-1]["content"]:  # a turn that begins with nothing is an open turn
        cut, continues = cut[:-1], False
    arguments = getattr(tokenizer, "chat_template_args", {})
    try:
        text: str = tokenizer.apply_chat_template(
            cut,
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            **arguments,
        )
        return text, mark
    except (TemplateError, ValueError) as error:  # it refuses these messages, or asks for what a template may not do
        raise ConfigError(
            f"the tokenizer's chat template refuses the prompt {str(prompt)[:80]!r}: {error}; change the prompt's "
            "messages or the template."
        ) from error


def begun_turn(prompt: Prompt) -> str:
    """The text with which a prompt begins the assistant's turn; "" for a prompt that leaves the turn open."""
    last = prompt[-1] if isinstance(prompt, list) and prompt else None
    is_begun = isinstance(last, dict) and last.get("role") == "assistant"
    return str(last.get("content", "")) if is_begun and last is not None else ""


def cut_content(tokenizer: Any, value: Any, keep: tuple[str, ...], mark: str) -> Any:
    """The value with a mark inside every spelling of a control token, in all its texts."""
    if isinstance(value, dict):
        return {key: cut_content(tokenizer, item, keep, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [cut_content(tokenizer, item, keep, mark) for item in value]
    spelling = _spellings(tokenizer, tokenizer.chat_template, keep) if isinstance(value, str) else None
    return value if spelling is None else spelling.sub(rf"\1{mark}", value)


def unused_mark(texts: Any) -> str:
    """A mark that occurs in none of the texts."""
    longest = max(map(len, re.findall(f"{_CUT}+", json.dumps(texts, ensure_ascii=False, default=str))), default=0)
    return _CUT * (longest + 1)
