"""The likelihood of given responses: supervised fine-tuning, and the supervised term of a reinforcement objective."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policies.policy import Policy
from policies.prompt_encoding import encode_content
from support.errors import ConfigError


def encode_responses(policy: Policy, rows: list[dict[str, Any]], max_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention mask, loss mask), each (rows, time), padded on the right; the loss mask covers responses and their end token.

    Of the control tokens that a response or prefix spells, <think> and </think> are encoded as tokens, because demonstrations teach when to close
    the reasoning; all others stay text, so that data cannot end a turn or open another one.

    Args:
        rows: with `prompt`, `response` and an optional `prefix` of the response that is given and not learned.
        max_length: longest sequence in tokens. A longer row raises ConfigError, since a cut response would teach to stop early.
    """
    tokenizer, sequences = policy.tokenizer, []
    for row in rows:
        given = policy.encode(row["prompt"])
        if row.get("prefix"):
            given = given + encode_content(tokenizer, row["prefix"])
        learned = encode_content(tokenizer, row["response"]) + [tokenizer.eos_token_id]
        if len(given) + len(learned) > max_length:
            raise ConfigError(
                f"row {row.get('id')!r} has {len(given) + len(learned)} tokens, more than max_length={max_length}; "
                "drop or shorten it, or raise model.max_length."
            )
        sequences.append((given, learned))
    width = max(len(given) + len(learned) for given, learned in sequences)
    ids = torch.full((len(rows), width), policy.pad_token_id, device=policy.device)
    mask, loss_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (given, learned) in enumerate(sequences):
        length = len(given) + len(learned)
        ids[i, :length] = torch.tensor(given + learned, device=policy.device)
        mask[i, :length] = 1
        loss_mask[i, len(given) : length] = True
    return ids, mask, loss_mask


def response_loss(policy: Policy, rows: list[dict[str, Any]], max_length: int) -> Float[Tensor, ""]:
    """-(1 / sum_i |y_i|) * sum_i sum_t log pi(y_{i,t} | x_i, y_{i,<t}) over the response tokens."""
    total, tokens = summed_response_loss(policy, rows, max_length)
    return total / tokens


def summed_response_loss(
    policy: Policy, rows: list[dict[str, Any]], max_length: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The same without its first factor, and the number of response tokens."""
    ids, mask, loss_mask = encode_responses(policy, rows, max_length)
    return policy(_summed_loss, policy, ids, mask, loss_mask), loss_mask[:, 1:].sum().float()


def _summed_loss(policy: Policy, ids: Tensor, mask: Tensor, loss_mask: Tensor) -> Float[Tensor, ""]:
    logits = policy.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    targets = ids[:, 1:].masked_fill(~loss_mask[:, 1:], -100)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum"
    )
