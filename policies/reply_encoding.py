"""Token ids of the messages that follow a turn of the assistant, as the chat template writes them in a conversation.

The conversation so far is not encoded again: its tokens are what the policy wrote, and other tokens of the same text
would not be. The template writes a conversation with a stand-in for the assistant's turn, and what stands behind the
stand-in is encoded.
"""

import json
from typing import Any

from jinja2 import TemplateError

from policies.prompt_encoding import cut_content, encode_cut, unused_mark
from support.errors import ConfigError
from support.prompt_identity import check_prompt

#: a private character of Unicode, the assistant's turn
_TURN = "\ue001"


def encode_reply(tokenizer: Any, messages: list[dict[str, str]], ended: bool, end_tokens: list[int]) -> list[int]:
    """Token ids between the assistant's last turn and the beginning of its next one.

    Args:
        messages: of other roles (user, tool), with texts as content; control tokens that they spell stay text.
        ended: whether the policy ended its turn by an end token; the template's own is then left out.
        end_tokens: ids of the end tokens.

    Raises:
        ConfigError: there is no template, or it refuses the messages, or leaves out the assistant's turn.
    """
    check_prompt(messages, "an environment's reply")
    if not tokenizer.chat_template:
        raise ConfigError(
            f"an environment replied with messages, but the tokenizer {tokenizer.name_or_path} has no chat template; "
            "let it reply with a text, or use a model with a template."
        )
    mark = unused_mark(messages)
    turn = _TURN * (json.dumps(messages, ensure_ascii=False).count(_TURN) + 1)
    cut = [cut_content(tokenizer, message, (), mark) | {"role": message["role"]} for message in messages]
    begun = [{"role": "user", "content": "?"}, {"role": "assistant", "content": turn}]
    arguments = getattr(tokenizer, "chat_template_args", {})
    try:
        text: str = tokenizer.apply_chat_template(
            [*begun, *cut], tokenize=False, add_generation_prompt=True, **arguments
        )
    except (TemplateError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer's chat template refuses an environment's reply {str(messages)[:80]!r}: {error}; reply with "
            "other roles, or with a text."
        ) from error
    before, _, behind = text.rpartition(turn)
    if not before:
        raise ConfigError(
            "the tokenizer's chat template leaves out earlier turns of the assistant, so an environment's messages "
            "cannot be put behind them; let it reply with a text, or change the template."
        )
    ids = encode_cut(tokenizer, behind, mark)
    return ids[1:] if ended and ids and ids[0] in end_tokens else ids
