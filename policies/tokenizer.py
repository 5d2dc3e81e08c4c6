"""The tokenizer of a model, with a padding token and, if asked for, a prompt that opens the reasoning."""

import re
from typing import Any

from transformers import AutoTokenizer

from policies.locate import locate, unreadable
from policies.prompt_encoding import render
from support.errors import ConfigError

#: arguments of `apply_chat_template` that depend on the prompt, or on how it is encoded
OURS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "messages",
    "return_dict",
    "return_tensors",
    "tokenize",
}


def load_tokenizer(name: str, chat_template_args: dict[str, Any] | None = None, needs_end: bool = True) -> Any:
    """Load a model's tokenizer, with a padding token.

    Args:
        chat_template_args: arguments with which `encode_prompt` calls its chat template.
        needs_end: whether it must have an end token; an encoder, which generates nothing, does without one.

    Raises:
        ConfigError: the tokenizer cannot be read, lacks a token that it needs, or its chat template does not use an
            argument.
    """
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # the libraries raise many types; all of them mean that this tokenizer is unreadable
        raise unreadable("tokenizer of", name, error) from error
    if tokenizer.eos_token_id is None and needs_end:
        raise ConfigError(
            f"the tokenizer of {name} has no end token, so completions could never end; set its eos_token."
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {name} has neither a padding nor an end token, so texts of different lengths cannot "
            "stand in one batch; set its pad_token and save it into the model's folder."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template_args = check_template_args(tokenizer, chat_template_args or {}, name)
    return tokenizer


def check_template_args(tokenizer: Any, arguments: dict[str, Any], name: str) -> dict[str, Any]:
    """The arguments, if the tokenizer's chat template uses each of them. Raises ConfigError otherwise."""
    unused = [key for key in arguments if key in OURS or not template_uses(tokenizer, key)]
    if unused:
        why = "has no chat template" if not tokenizer.chat_template else "has a chat template that does not use it"
        raise ConfigError(
            f"policy.chat_template_args names {unused[0]!r}, "
            + (
                "which this project sets itself; remove it."
                if unused[0] in OURS
                else f"but the tokenizer of {name} {why}; remove it, or correct its spelling."
            )
        )
    return arguments


def template_uses(tokenizer: Any, argument: str) -> bool:
    """Whether the tokenizer's chat template mentions an argument."""
    template = tokenizer.chat_template
    text = " ".join(template.values()) if isinstance(template, dict) else template or ""
    return re.search(rf"\b{re.escape(argument)}\b", text) is not None


def open_thinking(tokenizer: Any) -> None:
    """Let the chat template's prompt end with an open <think>, unless it does already.

    Raises:
        ConfigError: for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "policy.open_thinking needs a tokenizer with a chat template; set tokenizer.chat_template and save the "
            "tokenizer into the model's folder."
        )
    text = render(tokenizer, "?")[0]
    if not text.rstrip().endswith("<think>"):
        tokenizer.chat_template += "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"


def check_known(tokenizer: Any, ids: list[int], vocabulary: int, where: str) -> None:
    """Refuse token ids beyond the model's embedding, such as those of a token that was added to the tokenizer alone.

    Args:
        vocabulary: number of rows of the embedding.
        where: what has the tokens, as the beginning of a sentence.

    Raises:
        ConfigError: names the token.
    """
    if (largest := max(ids, default=0)) >= vocabulary:
        raise ConfigError(
            f"{where} has the token {tokenizer.convert_ids_to_tokens(largest)!r} with the id {largest}, but the "
            f"model's embedding has {vocabulary} rows. Resize the embedding (resize_token_embeddings) and save model "
            "and tokenizer together, or use the tokenizer without this token."
        )
