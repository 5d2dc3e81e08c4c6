"""The tokenizer of a model, with a padding token and, if asked for, a prompt that opens the reasoning."""

from typing import Any

from transformers import AutoTokenizer

from policies.locate import locate, unreadable
from policies.prompt_encoding import render
from support.errors import ConfigError


def load_tokenizer(name: str) -> Any:
    """Load a model's tokenizer, with a padding token. Raises ConfigError if it cannot be read or has no end token."""
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # the libraries raise many types; all of them mean that this tokenizer is unreadable
        raise unreadable("tokenizer of", name, error) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {name} has no end token, so completions could never end; set its eos_token."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
