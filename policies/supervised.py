"""The likelihood of given responses: supervised fine-tuning, and the supervised term of a reinforcement objective."""

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policies.config_checks import check_length
from policies.policy import Policy
from policies.prompt_encoding import MARKERS, encode_content
from policies.reply_encoding import encode_reply
from support.errors import ConfigError
from support.prompt_identity import check_response


def encode_responses(policy: Policy, rows: list[dict[str, Any]], max_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention mask, loss mask), each (rows, time), padded on the right.

    The loss mask covers responses and their end token. In a response or prefix, the spellings <think> and </think> are
    encoded as tokens, because demonstrations teach when to close the reasoning; all other control tokens stay text, so
    that data cannot end a turn or open another one. Of a response of several turns, what others said is not learned.

    Args:
        rows: with `prompt`, `response` (see `encode_turns`) and, optionally, a `prefix` of the response that is not
            learned.
        max_length: longest sequence in tokens.

    Raises:
        ConfigError: for a row that is longer than max_length or the model's context; cut, it would teach to stop early.
    """
    sequences = []
    for row in rows:
        context = policy.encode(row["prompt"])
        if row.get("prefix"):
            context = context + encode_content(policy.tokenizer, row["prefix"])
        response, learned = encode_turns(policy, row["response"], f"row {row.get('id')!r}")
        check_row_length(policy, row, len(context) + len(response), max_length)
        sequences.append((context, response, learned))
    width = max(len(context) + len(response) for context, response, _ in sequences)
    ids = torch.full((len(rows), width), policy.pad_token_id, device=policy.device)
    mask, loss_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (context, response, learned) in enumerate(sequences):
        length = len(context) + len(response)
        ids[i, :length] = torch.tensor(context + response, device=policy.device)
        mask[i, :length] = 1
        loss_mask[i, len(context) : length] = torch.tensor(learned, device=policy.device)
    return ids, mask, loss_mask


def encode_turns(policy: Policy, response: str | list[dict[str, str]], where: str) -> tuple[list[int], list[bool]]:
    """(token ids of a response, which of them are the policy's), as engines write conversations.

    Args:
        response: a text, or turns as `support.prompt_identity.check_response` describes them. A turn of the policy
            before another message ends with the end token; one before an output goes on behind it.
        where: the row, for messages.

    Raises:
        ConfigError: the turns have another form, or the chat template refuses them.
    """
    check_response(response, where)
    turns: list[Any] = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    end, is_learned = policy.tokenizer.eos_token_id, True
    ids: list[int] = []
    learned: list[bool] = []
    for between, group in itertools.groupby(turns, key=lambda turn: turn["role"] in ("user", "tool")):
        if between:
            messages = [{"role": turn["role"], "content": turn["content"]} for turn in group]
            ids += [end, *encode_reply(policy.tokenizer, messages, True, policy.eos_token_ids)]
            learned += [is_learned] + [False] * (len(ids) - len(learned) - 1)
            continue
        for turn in group:
            is_own = turn["role"] == "assistant"
            is_learned = is_own and turn.get("learned", True) is not False
            ids += encode_content(policy.tokenizer, turn["content"], MARKERS if is_own else ())
            learned += [is_learned] * (len(ids) - len(learned))
    return [*ids, end], [*learned, is_learned]


def encode_response(policy: Policy, text: str, ended: bool = True) -> list[int]:
    """Token ids of a response and, if it has `ended`, of the end token. The response's control tokens stay text.

    Raises:
        ConfigError: the response has several turns, which only supervised fine-tuning reads.
    """
    if not isinstance(text, str):
        raise ConfigError(
            f"the response {str(text)[:80]!r} has several turns, from which only SFT learns; give responses as texts."
        )
    end = [policy.tokenizer.eos_token_id] if ended else []
    return encode_content(policy.tokenizer, text) + end


def check_row_length(policy: Policy, row: dict[str, Any], tokens: int, max_length: int) -> None:
    """Refuse a row whose sequence is longer than max_length or the model's context. Raises ConfigError."""
    if tokens > max_length:
        raise ConfigError(
            f"row {row.get('id')!r} has {tokens} tokens, more than max_length={max_length}; drop or shorten it, or "
            "raise model.max_length."
        )
    check_length(policy.bare.config, tokens, f"row {row.get('id')!r}")


def response_loss(policy: Policy, rows: list[dict[str, Any]], max_length: int) -> Float[Tensor, ""]:
    """-(1 / sum_i |y_i|) * sum_i sum_t log pi(y_{i,t} | x_i, y_{i,<t}) over the response tokens."""
    total, tokens = summed_response_loss(policy, rows, max_length)
    return total / tokens


def summed_response_loss(
    policy: Policy, rows: list[dict[str, Any]], max_length: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(-sum_i sum_t log pi(y_{i,t} | x_i, y_{i,<t}), the number of response tokens)."""
    ids, mask, loss_mask = encode_responses(policy, rows, max_length)
    return policy(_summed_loss, policy, ids, mask, loss_mask), loss_mask[:, 1:].sum().float()


def _summed_loss(policy: Policy, ids: Tensor, mask: Tensor, loss_mask: Tensor) -> Float[Tensor, ""]:
    logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = ids[:, 1:].masked_fill(~loss_mask[:, 1:], -100)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
    )
