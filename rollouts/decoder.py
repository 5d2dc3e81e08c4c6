"""A lean inference forward for Llama-shaped models, which reads the weights of the transformers module itself.

Llama-shaped: RMSNorm, rotary positions, grouped-query attention, a gated MLP, as in Llama, SmolLM2, Qwen2.5 and Qwen3. What it saves over
the module's own forward is everything that decoding repeats for nothing: the prompt's keys and values are stored once a prompt, not
once a completion, and read once for all completions of it; caches are written in place; no masks are built anew, no caches grown by copies.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from policies.adapters import acting_weight

_LAYER = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}

Linear = tuple[Tensor, Tensor | None]


@dataclass
class _Layer:
    norm: Tensor
    query: Linear
    key: Linear
    value: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


class Cache:
    """Keys and values of some rows in one tensor, which grows by doubling in time.

    Fields:
        states: (layers, 2, rows, key heads, time, size), keys at 0, values at 1.
    """

    def __init__(self, layers: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.states = torch.zeros(layers, 2, 0, key_heads, 0, size, dtype=dtype, device=device)

    def reserve(self, rows: int, time: int) -> None:
        """Room for this many rows and tokens; rows beyond are forgotten when the tensor is made anew."""
        layers, two, had_rows, heads, had_time, size = self.states.shape
        if rows > had_rows or time > had_time:
            time = had_time if time <= had_time else max(time, min(2 * had_time, 2 * time))
            grown = self.states.new_zeros(layers, two, rows, heads, time, size)
            kept = min(rows, had_rows)
            grown[:, :, :kept, :, :had_time] = self.states[:, :, :kept]
            self.states = grown

    def move(self, source: Tensor, target: Tensor, time: int) -> None:
        """Copy the first tokens of rows over other rows."""
        self.states[:, :, target, :, :time] = self.states[:, :, source, :, :time]


class PromptCache(Cache):
    """Prompts in slots, padded on the right.

    Fields:
        lengths: (slots,), tokens of each prompt. hidden: (slots, width), the last token's output before the output layer.
    """

    lengths: Int[Tensor, "slots"]
    hidden: Float[Tensor, "slots width"]


def _times(states: Float[Tensor, "... inputs"], linear: Linear) -> Float[Tensor, "... outputs"]:
    weight, bias = linear
    return states @ weight if bias is None else states @ weight + bias


class Decoder:
    """Prefill and single decoding steps of one model.

    Weights are taken as they are now: those in the computing precision are shared with the module, adapters are merged into copies.
    Make a new one after an update.

    Args:
        bare: a causal language model of transformers, which may hold adapters' layers.
        dtype: in which matrices are multiplied; what is summed over the layers keeps the weights' own.
        transpose: keep transposed copies of the matrices, with which few rows are multiplied faster on a CPU.

    Raises:
        ValueError: the model is not Llama-shaped.
    """

    @torch.no_grad()
    def __init__(self, bare: Any, dtype: torch.dtype, transpose: bool = False) -> None:
        self.bare, self.dtype = bare, dtype
        reason = self._unsuitable()
        if reason:
            raise ValueError(reason)
        config = self.bare.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.epsilon = config.rms_norm_eps
        self.act: Callable[[Tensor], Tensor] = self.bare.get_decoder().layers[0].mlp.act_fn
        self.scale = 1 / math.sqrt(self.size)
        decoder = self.bare.get_decoder()
        self.embedding, self.norm = decoder.embed_tokens.weight, decoder.norm.weight
        # Not transposed: with a large vocabulary the copy would be the largest of all, and gains little.
        self.head = self._linear(self.bare.get_output_embeddings(), transpose=False)
        self.layers = [self._layer(layer, transpose) for layer in decoder.layers]

    def _unsuitable(self) -> str | None:
        decoder = self.bare.get_decoder()
        names = {name for name, _ in decoder.named_children()}
        if not {"embed_tokens", "layers", "norm", "rotary_emb"} <= names:
            return f"{type(self.bare).__name__} is built differently from Llama"
        kinds = set(getattr(self.bare.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(self.bare.config, "rope_parameters", {}).get(
            "rope_type", "default"
        ) in (
            "dynamic",
            "longrope",
        ):
            return f"{type(self.bare).__name__} has layers or rotary positions that change with the length"
        for layer in decoder.layers:
            parts = {name: {n for n, _ in child.named_children()} for name, child in layer.named_children()}
            extra = parts.get("self_attn", set()) - _ATTENTION
            if (
                set(parts) != _LAYER
                or not parts["self_attn"] >= _ATTENTION
                or extra - {"q_norm", "k_norm"}
                or parts["mlp"] != _MLP
            ):
                return f"the layers of {type(self.bare).__name__} are built differently from Llama's"
        return None

    def _layer(self, layer: Any, transpose: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            layer.input_layernorm.weight,
            self._linear(attention.q_proj, transpose),
            self._linear(attention.k_proj, transpose),
            self._linear(attention.v_proj, transpose),
            attention.q_norm.weight if hasattr(attention, "q_norm") else None,
            attention.k_norm.weight if hasattr(attention, "k_norm") else None,
            self._linear(attention.o_proj, transpose),
            layer.post_attention_layernorm.weight,
            self._linear(mlp.gate_proj, transpose),
            self._linear(mlp.up_proj, transpose),
            self._linear(mlp.down_proj, transpose),
        )

    def _linear(self, module: Any, transpose: bool) -> Linear:
        """Weight (inputs, outputs) and bias."""
        weight, bias = acting_weight(module)
        weight = weight.to(self.dtype).t()
        return weight.contiguous() if transpose else weight, None if bias is None else bias.to(self.dtype)

    def cache(self, kind: type[Cache] = Cache) -> Any:
        """An empty one."""
        return kind(len(self.layers), self.key_heads, self.size, self.dtype, self.embedding.device)

    def rotary(self, positions: Int[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (..., 1, size), the sine's first half negated: rotation is x * cos + swapped(x) * sin."""
        cos, sin = self.bare.get_decoder().rotary_emb(self.embedding, positions.reshape(1, -1))
        half = self.size // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        return tuple(part.reshape(*positions.shape, 1, self.size) for part in (cos, sin))  # type: ignore[return-value]

    def _rms(self, states: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(states, (states.shape[-1],), weight, self.epsilon)

    def _projected(self, layer: _Layer, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values: (..., heads or key heads, size)."""
        states = self._rms(states, layer.norm).to(self.dtype)
        query, key, value = (
            _times(states, part).unflatten(-1, (-1, self.size)) for part in (layer.query, layer.key, layer.value)
        )
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._rms(query, layer.query_norm), self._rms(key, layer.key_norm)
        half = self.size // 2
        query, key = (torch.addcmul(x * cos, x.roll(half, -1), sin).to(self.dtype) for x in (query, key))
        return query, key, value

    def _rest(self, layer: _Layer, states: Tensor, attended: Tensor) -> Tensor:
        states = states + _times(attended, layer.out)
        inner = self._rms(states, layer.mlp_norm).to(self.dtype)
        return states + _times(self.act(_times(inner, layer.gate)).mul_(_times(inner, layer.up)), layer.down)

    @torch.no_grad()
    def prefill(
        self, ids: Int[Tensor, "prompts time"], lengths: Int[Tensor, "prompts"], cache: PromptCache, slots: Tensor
    ) -> None:
        """Put prompts, padded on the right, into slots of the cache, which has room for them."""
        time = ids.shape[1]
        cos, sin = self.rotary(torch.arange(time, device=ids.device))
        states = F.embedding(ids, self.embedding)
        repeats = self.heads // self.key_heads
        for i, layer in enumerate(self.layers):
            query, key, value = (x.transpose(1, 2) for x in self._projected(layer, states, cos, sin))
            cache.states[i, 0, slots, :, :time], cache.states[i, 1, slots, :, :time] = key, value
            attended = F.scaled_dot_product_attention(
                query,
                key.repeat_interleave(repeats, 1),
                value.repeat_interleave(repeats, 1),
                is_causal=True,
                scale=self.scale,
            )
            states = self._rest(layer, states, attended.transpose(1, 2).flatten(2))
        last = states[torch.arange(len(ids), device=ids.device), lengths - 1]
        cache.lengths[slots], cache.hidden[slots] = lengths, self._rms(last, self.norm)

    def logits(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        return _times(hidden.to(self.dtype), self.head)

    @torch.no_grad()
    def step(
        self,
        tokens: Int[Tensor, "rows"],
        positions: Int[Tensor, "rows"],
        at: Int[Tensor, "rows"],
        longest: int,
        own: Cache,
        shared: "SharedPrompts | None" = None,
    ) -> Float[Tensor, "rows width"]:
        """Outputs, before the output layer, of one more token of every row.

        Args:
            tokens: the token of each row. positions: its position in the row's sequence. at: its place in the row's cache.
            longest: max of at. own: the rows' cache, in the same order, with room for the token.
            shared: the rows' prompts, if the rows' cache does not hold them too.
        """
        rows = len(tokens)
        cos, sin = self.rotary(positions)
        index = torch.arange(rows, device=tokens.device)
        seen = torch.arange(longest + 1, device=tokens.device) <= at[:, None]
        bias = torch.zeros(seen.shape, dtype=self.dtype, device=tokens.device).masked_fill_(~seen, -torch.inf)[
            :, None, None
        ]
        states = F.embedding(tokens, self.embedding)
        for i, layer in enumerate(self.layers):
            query, key, value = self._projected(layer, states, cos, sin)
            keys, values = own.states[i].unbind(0)
            keys[index, :, at], values[index, :, at] = key, value
            keys, values = keys[:rows, :, : longest + 1], values[:rows, :, : longest + 1]
            # The heads that share a key head are one query matrix: nothing is copied.
            query = query.unflatten(1, (self.key_heads, -1))
            if shared is None:
                mask = bias.expand(-1, 1, query.shape[2], -1)
                attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scale)
            else:
                attended = shared.attend(i, query * self.scale, keys, values, bias)
            states = self._rest(layer, states, attended.flatten(1))
        return self._rms(states, self.norm)


class SharedPrompts:
    """Attention of rows to their prompts, of which each is read once for all its rows, and to their own tokens.

    Args:
        cache: the prompts. slot: (rows,), where each row's prompt is.
    """

    def __init__(self, cache: PromptCache, slot: Int[Tensor, "rows"]) -> None:
        self.cache, slots = cache, len(cache.lengths)
        order = slot.argsort(stable=True)
        counts = torch.bincount(slot, minlength=slots)
        rank = torch.empty_like(slot)
        rank[order] = torch.arange(len(slot), device=slot.device) - (counts.cumsum(0) - counts)[slot[order]]
        most = int(counts.max())
        # A table of slots x most rows a slot: where each row stands in it, and which row stands where (0 where none does).
        self.place = slot * most + rank
        self.row = torch.zeros(slots * most, dtype=torch.long, device=slot.device)
        self.row[self.place] = torch.arange(len(slot), device=slot.device)
        width = cache.states.shape[4]
        self.seen = (torch.arange(width, device=slot.device) < cache.lengths[slot, None])[:, None, None]

    def attend(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Float[Tensor, "rows key_heads repeats size"]:
        """
        Args:
            query: (rows, key heads, repeats, size), scaled. keys, values: the rows' own, (rows, key heads, time, size). bias: added to
                their scores.
        """
        repeats, width = query.shape[2], self.seen.shape[3]
        shared = self._by_row(self._by_prompt(query) @ self.cache.states[layer, 0].transpose(2, 3), repeats)
        scores = torch.cat([shared.masked_fill_(~self.seen, -torch.inf), query @ keys.transpose(2, 3) + bias], -1)
        weights = scores.float().softmax(-1).to(query.dtype)
        shared = self._by_row(self._by_prompt(weights[..., :width]) @ self.cache.states[layer, 1], repeats)
        return shared + weights[..., width:] @ values

    def _by_prompt(
        self, rowwise: Float[Tensor, "rows key_heads repeats n"]
    ) -> Float[Tensor, "slots key_heads several n"]:
        table: Tensor = rowwise[self.row].unflatten(0, (len(self.cache.lengths), -1))
        return table.transpose(1, 2).flatten(2, 3)

    def _by_row(
        self, table: Float[Tensor, "slots key_heads several n"], repeats: int
    ) -> Float[Tensor, "rows key_heads repeats n"]:
        rowwise: Tensor = table.unflatten(2, (-1, repeats))
        return rowwise.transpose(1, 2).flatten(0, 1)[self.place]
