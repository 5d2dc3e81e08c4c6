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
    """Keys and values of some rows in one tensor, grown by doubling.

    Fields:
        states: (layers, 2, rows, key heads, time, size), keys at 0, values at 1.
    """

    def __init__(self, layers: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.states = torch.zeros(layers, 2, 0, key_heads, 0, size, dtype=dtype, device=device)

    def reserve(self, rows: int, time: int) -> None:
        """Room for this many rows and tokens."""
        layers, two, had_rows, heads, had_time, size = self.states.shape
        if rows > had_rows or time > had_time:
            rows = max(rows, had_rows if rows <= had_rows else min(2 * had_rows, 2 * rows))
            time = max(time, had_time if time <= had_time else min(2 * had_time, 2 * time))
            grown = self.states.new_zeros(layers, two, rows, heads, time, size)
            grown[:, :, :had_rows, :, :had_time] = self.states
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


@dataclass
class Places:
    """Which prompt each live row belongs to, as index tensors; changes only when rows come or go.

    Fields:
        prompt: (rows,), index into the PromptCache.
        slot: (rows,), place of the row in a (prompts x most rows a prompt) table. rows: the table, flat, row indices, 0 where empty.
    """

    prompt: Tensor
    slot: Tensor
    rows: Tensor

    @classmethod
    def of(cls, prompt: Int[Tensor, "rows"], prompts: int) -> "Places":
        order = prompt.argsort(stable=True)
        counts = torch.bincount(prompt, minlength=prompts)
        rank = torch.empty_like(prompt)
        rank[order] = torch.arange(len(prompt), device=prompt.device) - (counts.cumsum(0) - counts)[prompt[order]]
        most = int(counts.max())
        slot = prompt * most + rank
        rows = torch.zeros(prompts * most, dtype=torch.long, device=prompt.device)
        rows[slot] = torch.arange(len(prompt), device=prompt.device)
        return cls(prompt, slot, rows)


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
        self.bare, self.dtype, self.transpose = bare, dtype, transpose
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
        self.head = self._linear(self.bare.get_output_embeddings())
        self.layers = [self._layer(layer) for layer in decoder.layers]

    def _unsuitable(self) -> str | None:
        decoder = self.bare.get_decoder()
        names = {name for name, _ in decoder.named_children()}
        if not {"embed_tokens", "layers", "norm", "rotary_emb"} <= names:
            return f"{type(self.bare).__name__} is built differently from Llama"
        kinds = set(getattr(self.bare.config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"} or getattr(self.bare.config, "rope_parameters", {}).get("rope_type", "default") in (
            "dynamic",
            "longrope",
        ):
            return f"{type(self.bare).__name__} has layers or rotary positions that change with the length"
        for layer in decoder.layers:
            parts = {name: {n for n, _ in child.named_children()} for name, child in layer.named_children()}
            extra = parts.get("self_attn", set()) - _ATTENTION
            if set(parts) != _LAYER or not parts["self_attn"] >= _ATTENTION or extra - {"q_norm", "k_norm"} or parts["mlp"] != _MLP:
                return f"the layers of {type(self.bare).__name__} are built differently from Llama's"
        return None

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return _Layer(
            layer.input_layernorm.weight,
            self._linear(attention.q_proj),
            self._linear(attention.k_proj),
            self._linear(attention.v_proj),
            attention.q_norm.weight if hasattr(attention, "q_norm") else None,
            attention.k_norm.weight if hasattr(attention, "k_norm") else None,
            self._linear(attention.o_proj),
            layer.post_attention_layernorm.weight,
            self._linear(mlp.gate_proj),
            self._linear(mlp.up_proj),
            self._linear(mlp.down_proj),
        )

    def _linear(self, module: Any) -> Linear:
        """Weight (inputs, outputs) and bias as they act now: a LoRA layer's with its active adapters added."""
        base = module.get_base_layer() if hasattr(module, "lora_A") else module
        weight, bias = base.weight, base.bias
        if base is not module and not module.disable_adapters and not module.merged:
            for name in module.active_adapters:
                weight = weight + module.get_delta_weight(name).to(weight.dtype)
        weight = weight.to(self.dtype).t()
        return weight.contiguous() if self.transpose else weight, None if bias is None else bias.to(self.dtype)

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
        query, key, value = (_times(states, part).unflatten(-1, (-1, self.size)) for part in (layer.query, layer.key, layer.value))
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
    def prefill(self, ids: Int[Tensor, "prompts time"], lengths: Int[Tensor, "prompts"], cache: PromptCache, slots: Tensor) -> None:
        """Put prompts, padded on the right, into slots of the cache, which has room for them."""
        time = ids.shape[1]
        cos, sin = self.rotary(torch.arange(time, device=ids.device))
        states = F.embedding(ids, self.embedding)
        repeats = self.heads // self.key_heads
        for i, layer in enumerate(self.layers):
            query, key, value = (x.transpose(1, 2) for x in self._projected(layer, states, cos, sin))
            cache.states[i, 0, slots, :, :time], cache.states[i, 1, slots, :, :time] = key, value
            attended = F.scaled_dot_product_attention(
                query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), is_causal=True, scale=self.scale
            )
            states = self._rest(layer, states, attended.transpose(1, 2).flatten(2))
        last = states[torch.arange(len(ids), device=ids.device), lengths - 1]
        cache.lengths[slots], cache.hidden[slots] = lengths, self._rms(last, self.norm)

    def logits(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        return _times(hidden.to(self.dtype), self.head)

    @torch.no_grad()
    def step(
        self, tokens: Int[Tensor, "rows"], steps: Int[Tensor, "rows"], longest: int, prompts: PromptCache, own: Cache, places: Places
    ) -> Float[Tensor, "rows width"]:
        """Outputs, before the output layer, of the next position of every row.

        Args:
            tokens: the last token of each row. steps: completion tokens before it. longest: max of steps.
            own: the completions' cache, rows in the same order, with room for one more token.
        """
        rows, device = len(tokens), tokens.device
        repeats, slots, width = self.heads // self.key_heads, *prompts.states.shape[2:5:2]
        cos, sin = self.rotary(prompts.lengths[places.prompt] + steps)
        index = torch.arange(rows, device=device)
        seen_prompt = torch.arange(width, device=device) < prompts.lengths[places.prompt, None]
        seen_own = torch.arange(longest + 1, device=device) <= steps[:, None]
        unseen = torch.cat([seen_prompt, seen_own], 1).logical_not()[:, None, None]
        states = F.embedding(tokens, self.embedding)

        def by_prompt(rowwise: Tensor) -> Tensor:
            """(rows, key heads, repeats, n) -> (slots, key heads, most rows * repeats, n)"""
            return rowwise[places.rows].unflatten(0, (slots, -1)).transpose(1, 2).flatten(2, 3)

        def by_row(table: Tensor) -> Tensor:
            """back"""
            return table.unflatten(2, (-1, repeats)).transpose(1, 2).flatten(0, 1)[places.slot]

        for i, layer in enumerate(self.layers):
            query, key, value = self._projected(layer, states, cos, sin)
            keys, values = own.states[i].unbind(0)
            keys[index, :, steps], values[index, :, steps] = key, value
            keys, values = keys[:rows, :, : longest + 1], values[:rows, :, : longest + 1]
            query = query.mul(self.scale).unflatten(1, (self.key_heads, repeats))
            shared = by_row(by_prompt(query) @ prompts.states[i, 0].transpose(2, 3))
            scores = torch.cat([shared, query @ keys.transpose(2, 3)], -1).float()
            weights = scores.masked_fill_(unseen, -torch.inf).softmax(-1).to(self.dtype)
            attended = by_row(by_prompt(weights[..., :width]) @ prompts.states[i, 1]) + weights[..., width:] @ values
            states = self._rest(layer, states, attended.flatten(1))
        return self._rms(states, self.norm)
