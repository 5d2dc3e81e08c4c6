"""Conversations with `generate` of transformers, whose next turn goes on from the cache of the turns before.

All rows advance by one turn at a time. Their sequences are padded between turns, and the attention mask hides the
padding; positions count what the mask shows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rollouts.conversations import Conversations, Sampled
from rollouts.engine import Prompts, padded_left

#: (rows, ids, mask, cache or None) -> (what was sampled, the same as padded tokens, the cache)
Sample = Callable[[list[int], Tensor, Tensor, Any], tuple[list[Sampled], Tensor, Any]]


def carry_turns(conversations: Conversations, rows: list[int], prompts: Prompts, sample: Sample) -> None:
    """Hold the conversations of some rows, side by side.

    Args:
        rows: their indices. prompts: the prompt of each of them.
        sample: the next turn of each row. The cache holds the columns of `ids` and the sampled tokens but the last.
    """
    pad, device = conversations.policy.pad_token_id, conversations.tokens.device
    ids, mask = padded_left(prompts, pad, device)
    cache = None
    while rows:
        turns, tokens, cache = sample(rows, ids, mask, cache)
        starts = [conversations.start[row] for row in rows]
        replies = conversations.advance(rows, turns)
        going_on = [i for i, reply in enumerate(replies) if reply is not None]
        if not going_on:
            return
        rows, index = [rows[i] for i in going_on], torch.tensor(going_on, device=device)
        ends = [conversations.lengths[row] for row in rows]
        # The last token of each turn is computed with the reply: its outputs may be lost, or were never computed.
        chunks = [conversations.so_far(row)[end - 1 :] for row, end in zip(rows, ends, strict=True)]
        counts = torch.tensor([end - starts[i] for i, end in zip(going_on, ends, strict=True)], device=device)
        kept = torch.arange(tokens.shape[1], device=device) < counts[:, None] - 1
        chunk_ids, chunk_mask = padded_left(chunks, pad, device)
        ids = torch.cat([ids[index], tokens[index], chunk_ids], 1)
        mask = torch.cat([mask[index], kept, chunk_mask], 1)
        cache.batch_select_indices(index)
