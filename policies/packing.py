"""Completions of a prompt share one copy of it: several groups in one sequence, without padding.

The sequence is [prompts, one after another | completions, one after another]. Everything but attention works token by token, so only
attention must know who sees whom: a prompt's token its own prompt so far, a completion's token its whole prompt and its own row so
far. The last token of a completion predicts nothing and stays out.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

SHARED_PREFIX = "shared_prefix"


@dataclass
class PromptGroups:
    """Rows to be scored, each prompt stored once.

    Fields:
        prompt_ids, prompt_mask: (prompts, prompt_time), padded on the left.
        owner: index of each row's prompt.
        completion_ids, completion_mask: (rows, time), padded on the right.
    """

    prompt_ids: Int[Tensor, "prompts prompt_time"]
    prompt_mask: Bool[Tensor, "prompts prompt_time"]
    owner: Int[Tensor, "rows"]
    completion_ids: Int[Tensor, "rows time"]
    completion_mask: Bool[Tensor, "rows time"]

    @cached_property
    def packed(self) -> "PackedSequence":
        return PackedSequence(self)

    def first(self, rows: int) -> "PromptGroups":
        """The first rows alone."""
        return PromptGroups(self.prompt_ids, self.prompt_mask, self.owner[:rows], self.completion_ids[:rows], self.completion_mask[:rows])


class PackedSequence:
    """Index tensors that lead from a PromptGroups to the packed sequence and back.

    Fields:
        ids, positions: (1, tokens), what the model reads.
        source: (targets,), index of the token whose output predicts each completion token. targets: those tokens.
        prompt_index: (prompts, longest prompt), where each prompt's tokens lie; padded on the right with 0.
        row_index: (rows, longest completion - 1), where each row's tokens lie; likewise.
        prompt_places, row_places: flat places of the real entries of the two, in the order of the sequence.
        mask: (rows, 1, row_time, prompt_time + row_time), True where a row's token may look.
    """

    def __init__(self, groups: PromptGroups) -> None:
        device = groups.prompt_ids.device
        prompt_lengths = groups.prompt_mask.sum(1)
        row_lengths = groups.completion_mask.sum(1)
        inputs = (row_lengths - 1).clamp(min=0)
        width, longest = int(prompt_lengths.max()), int(inputs.max())
        steps = torch.arange(longest, device=device)
        real_prompt = torch.arange(width, device=device) < prompt_lengths[:, None]
        real_row = steps < inputs[:, None]
        prompt_start = prompt_lengths.cumsum(0) - prompt_lengths
        total = int(prompt_lengths.sum())
        row_start = total + inputs.cumsum(0) - inputs
        self.prompt_index = torch.where(real_prompt, prompt_start[:, None] + torch.arange(width, device=device), 0)
        self.row_index = torch.where(real_row, row_start[:, None] + steps, 0)
        self.prompt_places, self.row_places = real_prompt.flatten().nonzero()[:, 0], real_row.flatten().nonzero()[:, 0]
        completion_inputs = groups.completion_ids[:, :longest][real_row]
        self.ids = torch.cat([groups.prompt_ids[groups.prompt_mask], completion_inputs])[None]
        row_positions = (prompt_lengths[groups.owner, None] + steps)[real_row]
        self.positions = torch.cat([torch.arange(width, device=device).expand(real_prompt.shape)[real_prompt], row_positions])[None]
        last = (prompt_start + prompt_lengths - 1)[groups.owner, None]
        before = torch.cat([last, self.row_index], 1)[:, : groups.completion_ids.shape[1]]
        before = F.pad(before, (0, groups.completion_ids.shape[1] - before.shape[1]))
        self.source, self.targets = before[groups.completion_mask], groups.completion_ids[groups.completion_mask]
        self.owner, self.tokens = groups.owner, self.ids.shape[1]
        own = (steps[:, None] >= steps).expand(len(inputs), 1, longest, longest)
        shared = real_prompt[groups.owner][:, None, None].expand(-1, 1, longest, -1)
        self.mask = torch.cat([shared, own], -1)


def _take(states: Float[Tensor, "tokens heads size"], index: Int[Tensor, "rows time"]) -> Float[Tensor, "rows heads time size"]:
    return states.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)


def _fold(query: Tensor, key_heads: int) -> Tensor:
    """(rows, heads, time, size) -> (rows, key heads, heads per key head * time, size): shared key heads need no copies."""
    rows, heads, time, size = query.shape
    return query.reshape(rows, key_heads, heads // key_heads * time, size)


def shared_prefix_attention(
    module: nn.Module,
    query: Float[Tensor, "one heads tokens size"],
    key: Float[Tensor, "one key_heads tokens size"],
    value: Float[Tensor, "one key_heads tokens size"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: PackedSequence | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "one tokens heads size"], None]:
    """Attention within a PackedSequence; PyTorch's ordinary attention when none is given."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    heads, key_heads, size = q.shape[1], k.shape[1], q.shape[2]
    repeats = heads // key_heads
    prompt_keys, prompt_values = _take(k, packed.prompt_index), _take(v, packed.prompt_index)
    out = F.scaled_dot_product_attention(
        _take(q, packed.prompt_index),
        prompt_keys.repeat_interleave(repeats, 1),
        prompt_values.repeat_interleave(repeats, 1),
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
    )
    parts = [out.transpose(1, 2).flatten(0, 1).index_select(0, packed.prompt_places)]
    if packed.row_index.shape[1]:
        rows, time = packed.row_index.shape
        assert attention_mask is not None
        out = F.scaled_dot_product_attention(
            _fold(_take(q, packed.row_index), key_heads),
            torch.cat([prompt_keys[packed.owner], _take(k, packed.row_index)], 2),
            torch.cat([prompt_values[packed.owner], _take(v, packed.row_index)], 2),
            attn_mask=attention_mask.repeat(1, 1, repeats, 1),
            dropout_p=dropout,
            scale=scaling,
        )
        out = out.reshape(rows, heads, time, size).transpose(1, 2).flatten(0, 1)
        parts.append(out.index_select(0, packed.row_places))
    return torch.cat(parts)[None], None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def can_pack(model: nn.Module) -> bool:
    """Whether the model takes an attention function from outside and uses plain causal attention in every layer."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return bool(getattr(model, "_supports_attention_backend", False)) and kinds == {"full_attention"} and window is None
