"""Packing of prompt groups into one sequence without padding; the completions of a prompt share one copy of it.

The sequence is [prompts, one after another | completions, one after another]. Everything except attention works token
by token, so only attention needs to know which tokens per token may see: a prompt's token sees its own prompt so far, a
completion's token its whole prompt and its own row so far. The last token of a completion predicts nothing and is
left out.
"""

import re
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

    @classmethod
    def of(
        cls,
        prompts: list[list[int]],
        completions: list[list[int]],
        pad: int,
        device: torch.device,
        owner: list[int] | None = None,
    ) -> "PromptGroups":
        """Prompts and completions as token ids.

        Args:
            owner: index of each completion's prompt; None for one prompt per completion.
        """
        left, right = max(map(len, prompts)), max(1, *map(len, completions))
        return cls(
            torch.tensor([[pad] * (left - len(ids)) + ids for ids in prompts], device=device),
            torch.tensor([[False] * (left - len(ids)) + [True] * len(ids) for ids in prompts], device=device),
            torch.tensor(range(len(prompts)) if owner is None else owner, device=device),
            torch.tensor([ids + [pad] * (right - len(ids)) for ids in completions], device=device),
            torch.tensor([[True] * len(ids) + [False] * (right - len(ids)) for ids in completions], device=device),
        )

    @cached_property
    def packed(self) -> "PackedSequence":
        return PackedSequence(self)

    def rows(self, index: Int[Tensor, "selected"]) -> "PromptGroups":
        """The rows with these indices; prompts of other rows stay."""
        return PromptGroups(
            self.prompt_ids,
            self.prompt_mask,
            self.owner[index],
            self.completion_ids[index],
            self.completion_mask[index],
        )


@dataclass
class Bucket:
    """Rows of similar length, whose attention is computed together.

    Fields:
        owner: (rows,), index of each row's prompt.
        index: (rows, time), positions of each row's tokens in the sequence; padded on the right with 0.
        places: flat positions of the real entries of `index`, in the order of the sequence.
        mask: (rows, 1, time, prompt_time + time), True where a row's token may attend.
    """

    owner: Int[Tensor, "rows"]
    index: Int[Tensor, "rows time"]
    places: Int[Tensor, "tokens"]
    mask: Bool[Tensor, "rows 1 time both"]


class PackedSequence:
    """Index tensors between a PromptGroups and its packed sequence, in which the longest completions come first.

    Fields:
        ids, positions: (1, tokens), the model's inputs.
        source: (targets,), index of the token whose output predicts each completion token. targets: those tokens.
        prompt_index: (prompts, longest prompt), positions of each prompt's tokens; padded on the right with 0.
        prompt_places: flat positions of the real entries of prompt_index, in the order of the sequence.
        buckets: the rows by length, so that short rows are not padded to long ones: lengths in a bucket differ at most
            by a factor of two.
    """

    def __init__(self, groups: PromptGroups) -> None:
        device = groups.prompt_ids.device
        prompt_lengths, row_lengths = groups.prompt_mask.sum(1), groups.completion_mask.sum(1)
        inputs = (row_lengths - 1).clamp(min=0)
        width, longest, total = int(prompt_lengths.max()), int(inputs.max()), int(prompt_lengths.sum())
        steps, prompt_steps = torch.arange(longest, device=device), torch.arange(width, device=device)
        real_prompt, real_row = prompt_steps < prompt_lengths[:, None], steps < inputs[:, None]
        prompt_start = prompt_lengths.cumsum(0) - prompt_lengths
        self.prompt_index = torch.where(real_prompt, prompt_start[:, None] + prompt_steps, 0)
        self.prompt_places = real_prompt.flatten().nonzero()[:, 0]
        order = inputs.argsort(descending=True, stable=True)
        row_start = torch.empty_like(inputs)
        row_start[order] = total + inputs[order].cumsum(0) - inputs[order]
        row_index = torch.where(real_row, row_start[:, None] + steps, 0)
        row_positions = (prompt_lengths[groups.owner, None] + steps)[order][real_row[order]]
        completion_inputs = groups.completion_ids[order, :longest][real_row[order]]
        self.ids = torch.cat([groups.prompt_ids[groups.prompt_mask], completion_inputs])[None]
        self.positions = torch.cat([prompt_steps.expand(real_prompt.shape)[real_prompt], row_positions])[None]
        self.tokens = self.ids.shape[1]
        # The prompt's last token predicts a row's first, each of the row's tokens the next.
        last = (prompt_start + prompt_lengths - 1)[groups.owner, None]
        before = torch.cat([last, row_index], 1)[:, : groups.completion_ids.shape[1]]
        before = F.pad(before, (0, groups.completion_ids.shape[1] - before.shape[1]))
        self.source, self.targets = before[groups.completion_mask], groups.completion_ids[groups.completion_mask]
        self.buckets = []
        sizes = inputs[order].clamp(min=1).double().log2().floor()
        for size in sizes.unique().flip(0):
            rows = order[(sizes == size) & (inputs[order] > 0)]
            if len(rows):
                time = int(inputs[rows].max())
                causal = (steps[:time, None] >= steps[:time]).expand(len(rows), 1, time, time)
                prompt = real_prompt[groups.owner[rows]][:, None, None].expand(-1, 1, time, -1)
                places = real_row[rows, :time].flatten().nonzero()[:, 0]
                self.buckets.append(
                    Bucket(groups.owner[rows], row_index[rows, :time], places, torch.cat([prompt, causal], -1))
                )


def _take(
    states: Float[Tensor, "tokens heads size"], index: Int[Tensor, "rows time"]
) -> Float[Tensor, "rows heads time size"]:
    taken: Tensor = states.index_select(0, index.flatten()).unflatten(0, index.shape)
    return taken.transpose(1, 2)


def _fold(query: Tensor, key_heads: int) -> Tensor:
    """(rows, heads, time, size) -> (rows, key heads, heads per key head * time, size), so key heads need no copies."""
    rows, heads, time, size = query.shape
    return query.reshape(rows, key_heads, heads // key_heads * time, size)


class UnsuitableAttention(ValueError):
    """A model's attention does more than packed forwards do."""


#: options of an attention function that do not change its result within a packed sequence
_HARMLESS = {
    "is_causal",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
_LIMIT = re.compile("window|chunk_size|softcap")
#: shape of the mask that `packed_logprobs` gives to the model
NO_MASK = (1, 1, 1, 1)


def _check_plain(mask: Tensor | None, options: dict[str, Any]) -> None:
    """Refuse what a layer asks of its attention beyond plain causal attention: a window, a cap, sinks, a mask.

    Raises:
        UnsuitableAttention: names it.
    """
    extra = [name for name, value in options.items() if name not in _HARMLESS and value is not None]
    if extra:
        raise UnsuitableAttention(f"its attention uses {', '.join(sorted(extra))}")
    if mask is not None and mask.shape != NO_MASK:
        raise UnsuitableAttention("its layers make attention masks of their own")


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
    """Attention within a PackedSequence; PyTorch's ordinary attention without one."""
    if packed is None:
        ordinary: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return ordinary
    _check_plain(attention_mask, kwargs)
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
    for bucket in packed.buckets:
        rows, time = bucket.index.shape
        out = F.scaled_dot_product_attention(
            _fold(_take(q, bucket.index), key_heads),
            torch.cat([prompt_keys[bucket.owner], _take(k, bucket.index)], 2),
            torch.cat([prompt_values[bucket.owner], _take(v, bucket.index)], 2),
            attn_mask=bucket.mask.repeat(1, 1, repeats, 1),
            dropout_p=dropout,
            scale=scaling,
        )
        out = out.reshape(rows, heads, time, size).transpose(1, 2).flatten(0, 1)
        parts.append(out.index_select(0, bucket.places))
    return torch.cat(parts)[None], None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def can_pack(model: Any) -> bool:
    """Whether a transformers model accepts a custom attention function and has a plain matrix as output layer.

    With an output layer that has a bias or an adapter, packed forwards would be wrong from the moment in which it is
    not zero. What else may not fit shows in the comparison of policies/start_checks.py.
    """
    head = model.get_output_embeddings()
    return isinstance(head, nn.Linear) and head.bias is None and not hasattr(head, "lora_A") and can_attend(model)


def can_attend(model: Any) -> bool:
    """Whether a transformers model accepts a custom attention function, and its layers ask for nothing more."""
    return bool(getattr(model, "_supports_attention_backend", False)) and not limits(model.config)


def limits(config: Any) -> list[str]:
    """Names of a configuration's settings that limit what attention sees, or cap its scores or the logits."""
    config = config.get_text_config(decoder=True)  # of a model that also sees or hears
    unused = "window" if not getattr(config, "use_sliding_window", True) else "$."
    names = [name for name, value in config.to_dict().items() if _LIMIT.search(name) and value]
    return [name for name in names if not re.search(unused, name)]
