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
from torch import Tensor, nn

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


@dataclass
class PromptCache:
    """Keys and values of prompts, one tensor a layer, (prompts, key heads, time, size), padded on the right.

    Fields:
        lengths: tokens of each prompt. hidden: (prompts, width), the last token's output before the output layer.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Int[Tensor, "prompts"]
    hidden: Float[Tensor, "prompts width"]


class RowCache:
    """Keys and values of the completions being decoded, one tensor a layer, (rows, key heads, time, size), grown by doubling."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def reserve(self, rows: int, time: int, like: Tensor) -> None:
        """Room for this many rows and steps. `like`: (any, key heads, any, size)."""
        for store in (self.keys, self.values):
            for i, old in enumerate(store):
                held = (0, 0) if old is None else (old.shape[0], old.shape[2])
                if rows > held[0] or time > held[1]:
                    size = (max(rows, held[0]), like.shape[1], max(time, min(2 * held[1], 2 * time)), like.shape[3])
                    store[i] = torch.zeros(size, dtype=like.dtype, device=like.device)
                    if old is not None:
                        store[i][: held[0], :, : held[1]] = old  # type: ignore[index]

    def move(self, source: Tensor, target: Tensor, time: int) -> None:
        """Copy rows over others, which are finished."""
        for store in (self.keys, self.values):
            for tensor in store:
                assert tensor is not None
                tensor[target, :, :time] = tensor[source, :, :time]


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


class Decoder:
    """Prefill and single decoding steps of one model.

    Args:
        model: a causal language model of transformers, or peft's wrapper of one. Raises ValueError if it is not Llama-shaped.
    """

    def __init__(self, model: Any) -> None:
        self.bare = model.get_base_model() if hasattr(model, "peft_config") else model
        reason = self._unsuitable()
        if reason:
            raise ValueError(reason)
        config = self.bare.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.epsilon = config.rms_norm_eps
        self.act: Callable[[Tensor], Tensor] = self.bare.get_decoder().layers[0].mlp.act_fn
        self.scale = 1 / math.sqrt(self.size)
        self.refresh()

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

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights as they are now; adapters are merged into copies, all else is shared with the module."""
        decoder = self.bare.get_decoder()
        self.embedding, self.head = decoder.embed_tokens.weight, _linear(self.bare.get_output_embeddings())
        self.norm = decoder.norm.weight
        self.layers = [
            _Layer(
                layer.input_layernorm.weight,
                _linear(layer.self_attn.q_proj),
                _linear(layer.self_attn.k_proj),
                _linear(layer.self_attn.v_proj),
                layer.self_attn.q_norm.weight if hasattr(layer.self_attn, "q_norm") else None,
                layer.self_attn.k_norm.weight if hasattr(layer.self_attn, "k_norm") else None,
                _linear(layer.self_attn.o_proj),
                layer.post_attention_layernorm.weight,
                _linear(layer.mlp.gate_proj),
                _linear(layer.mlp.up_proj),
                _linear(layer.mlp.down_proj),
            )
            for layer in decoder.layers
        ]

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
        states = self._rms(states, layer.norm)
        query, key, value = (F.linear(states, *part).unflatten(-1, (-1, self.size)) for part in (layer.query, layer.key, layer.value))
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = self._rms(query, layer.query_norm), self._rms(key, layer.key_norm)
        half = self.size // 2
        query, key = (torch.addcmul(x * cos, x.roll(half, -1), sin) for x in (query, key))
        return query, key, value

    def _rest(self, layer: _Layer, states: Tensor, attended: Tensor) -> Tensor:
        states = states + F.linear(attended, *layer.out)
        inner = self._rms(states, layer.mlp_norm)
        return states + F.linear(self.act(F.linear(inner, *layer.gate)).mul_(F.linear(inner, *layer.up)), *layer.down)

    def prefill(self, ids: Int[Tensor, "prompts time"], lengths: Int[Tensor, "prompts"]) -> PromptCache:
        """Keys, values and last outputs of prompts padded on the right."""
        prompts, time = ids.shape
        cos, sin = self.rotary(torch.arange(time, device=ids.device))
        states, keys, values = F.embedding(ids, self.embedding), [], []
        for layer in self.layers:
            query, key, value = (x.transpose(1, 2) for x in self._projected(layer, states, cos, sin))
            keys.append(key.contiguous())
            values.append(value.contiguous())
            repeats = self.heads // self.key_heads
            attended = F.scaled_dot_product_attention(
                query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), is_causal=True, scale=self.scale
            )
            states = self._rest(layer, states, attended.transpose(1, 2).flatten(2))
        last = states[torch.arange(prompts, device=ids.device), lengths - 1]
        return PromptCache(keys, values, lengths, self._rms(last, self.norm))

    def logits(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        return F.linear(hidden, *self.head)

    def step(
        self, tokens: Int[Tensor, "rows"], steps: Int[Tensor, "rows"], longest: int, prompts: PromptCache, own: RowCache, places: Places
    ) -> Float[Tensor, "rows width"]:
        """Outputs, before the output layer, of the next position of every live row.

        Args:
            tokens: the last token of each row. steps: completion tokens before it. longest: max of steps.
        """
        rows, device = len(tokens), tokens.device
        repeats, width = self.heads // self.key_heads, prompts.keys[0].shape[2]
        cos, sin = self.rotary(prompts.lengths[places.prompt] + steps)
        index = torch.arange(rows, device=device)
        seen_prompt = torch.arange(width, device=device) < prompts.lengths[places.prompt, None]
        seen_own = torch.arange(longest + 1, device=device) <= steps[:, None]
        hidden_from = torch.cat([seen_prompt, seen_own], 1).logical_not()[:, None, None]
        count = len(prompts.lengths)
        states = F.embedding(tokens, self.embedding)
        for i, layer in enumerate(self.layers):
            query, key, value = self._projected(layer, states, cos, sin)
            own_keys, own_values = own.keys[i], own.values[i]
            assert own_keys is not None and own_values is not None
            own_keys[index, :, steps] = key
            own_values[index, :, steps] = value
            query = query.mul(self.scale).unflatten(1, (self.key_heads, repeats))
            table = query[places.rows].unflatten(0, (count, -1)).transpose(1, 2).flatten(2, 3)
            shared = (table @ prompts.keys[i].transpose(2, 3)).unflatten(2, (-1, repeats)).transpose(1, 2).flatten(0, 1)[places.slot]
            scores = torch.cat([shared, query @ own_keys[:rows, :, : longest + 1].transpose(2, 3)], -1).float()
            weights = scores.masked_fill_(hidden_from, -torch.inf).softmax(-1).to(query.dtype)
            table = weights[places.rows, ..., :width].unflatten(0, (count, -1)).transpose(1, 2).flatten(2, 3)
            shared = (table @ prompts.values[i]).unflatten(2, (-1, repeats)).transpose(1, 2).flatten(0, 1)[places.slot]
            attended = shared + weights[..., width:] @ own_values[:rows, :, : longest + 1]
            states = self._rest(layer, states, attended.flatten(1))
        return self._rms(states, self.norm)


def _linear(module: nn.Module) -> Linear:
    """Weight and bias as they act now: a LoRA layer's with its active adapters added."""
    if not hasattr(module, "lora_A"):
        return module.weight, module.bias  # type: ignore[return-value]
    base: Any = module.get_base_layer()  # type: ignore[operator]
    weight = base.weight
    if not module.disable_adapters and not module.merged:
        for name in module.active_adapters:  # type: ignore[union-attr]
            weight = weight + module.get_delta_weight(name).to(weight.dtype)  # type: ignore[operator]
    return weight, base.bias
