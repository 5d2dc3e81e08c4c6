"""A lean inference forward for Llama-shaped models, which reads the weights of the transformers module itself.

Llama-shaped: RMSNorm, rotary positions, grouped-query attention, a gated MLP, as in Llama, SmolLM2, Qwen2.5 and Qwen3.
Compared with the module's own forward, it avoids work that decoding would repeat: the prompt's keys and values are
stored once per prompt, not once per completion, and read once for all its completions; caches are written in place;
masks are not built anew, and caches do not grow by copies.
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
from policies.packing import limits
from rollouts.kv_cache import Cache, PromptCache, SharedPrompts

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


def _times(states: Float[Tensor, "... inputs"], linear: Linear) -> Float[Tensor, "... outputs"]:
    weight, bias = linear
    return states @ weight if bias is None else states @ weight + bias


class Decoder:
    """Prefill and single decoding steps of one model.

    Recurrent models have a decoder with the same methods (rollouts/recurrent_decoder.py).

    The decoder uses the weights of the moment: those in the computing precision are shared with the module, adapters
    are merged into copies. Make a new decoder after an update.

    Args:
        bare: a causal language model of transformers, which may hold adapters' layers.
        dtype: in which matrices are multiplied; the sum over the layers keeps the weights' own dtype.
        transpose: keep transposed copies of the matrices, which multiply a few rows faster on a CPU.

    Raises:
        ValueError: the model is not Llama-shaped.
    """

    reads_prompts = True  # rows may read their prompts from another cache than their own

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
        self.embedding, self.norm = acting_weight(decoder.embed_tokens)[0], decoder.norm.weight
        # Not transposed: with a large vocabulary this copy would be the largest of all, for little gain.
        self.head = self._linear(self.bare.get_output_embeddings(), transpose=False)
        self.layers = [self._layer(layer, transpose) for layer in decoder.layers]
        self.path = list(enumerate(self.layers))  # (place in the caches, layer), in the order of the computation

    def _unsuitable(self) -> str | None:
        """The reason why the model is not Llama-shaped, or None."""
        decoder = self.bare.get_decoder()
        names = {name for name, _ in decoder.named_children()}
        if not {"embed_tokens", "layers", "norm", "rotary_emb"} <= names:
            return f"{type(self.bare).__name__} is built differently from Llama"
        layer_types = set(getattr(self.bare.config, "layer_types", None) or ["full_attention"])
        rope_type = getattr(self.bare.config, "rope_parameters", {}).get("rope_type", "default")
        if layer_types != {"full_attention"} or rope_type in ("dynamic", "longrope"):
            return f"{type(self.bare).__name__} has layers or rotary positions that change with the length"
        if limiting := limits(self.bare.config):
            return f"{type(self.bare).__name__} limits its attention ({', '.join(limiting)})"
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

    def cache(self) -> Cache:
        """An empty cache for this model."""
        return Cache(len(self.layers), self.key_heads, self.size, self.dtype, self.embedding.device)

    def prompt_cache(self) -> PromptCache:
        """An empty cache for prompts."""
        return PromptCache(len(self.layers), self.key_heads, self.size, self.dtype, self.embedding.device)

    @property
    def vocabulary(self) -> int:
        """Number of logits per row."""
        return self.head[0].shape[1]

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
        """Compute prompts, padded on the right, into slots of the cache, which must have room for them."""
        time = ids.shape[1]
        cos, sin = self.rotary(torch.arange(time, device=ids.device))
        states = F.embedding(ids, self.embedding)
        repeats = self.heads // self.key_heads
        for i, layer in self.path:
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
        places: Int[Tensor, "rows"],
        last_place: int,
        cache: Cache,
        shared: SharedPrompts | None = None,
    ) -> Float[Tensor, "rows width"]:
        """Outputs, before the output layer, of one more token of every row.

        Args:
            tokens: the token of each row. positions: its position in the row's sequence.
            places: its place in the row's cache. last_place: the largest of them.
            cache: of the rows, in the same order, with room for the token.
            shared: the rows' prompts, if `cache` does not hold them too.
        """
        rows = len(tokens)
        cos, sin = self.rotary(positions)
        index = torch.arange(rows, device=tokens.device)
        seen = torch.arange(last_place + 1, device=tokens.device) <= places[:, None]
        bias = torch.zeros(seen.shape, dtype=self.dtype, device=tokens.device).masked_fill_(~seen, -torch.inf)
        bias = bias[:, None, None]
        states = F.embedding(tokens, self.embedding)
        for i, layer in self.path:
            query, key, value = self._projected(layer, states, cos, sin)
            keys, values = cache.states[i].unbind(0)
            keys[index, :, places], values[index, :, places] = key, value
            keys, values = keys[:rows, :, : last_place + 1], values[:rows, :, : last_place + 1]
            # The heads that share a key head are one query matrix: nothing is copied.
            query = query.unflatten(1, (self.key_heads, -1))
            if shared is None:
                mask = bias.expand(-1, 1, query.shape[2], -1)
                attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scale)
            else:
                attended = shared.attend(i, query * self.scale, keys, values, bias)
            states = self._rest(layer, states, attended.flatten(1))
        return self._rms(states, self.norm)

    @torch.no_grad()
    def extend(
        self,
        tokens: Int[Tensor, "rows time"],
        counts: Int[Tensor, "rows"],
        position: Int[Tensor, "rows"],
        place: Int[Tensor, "rows"],
        index: Int[Tensor, "rows"],
        cache: Cache,
        prompts: tuple[PromptCache, Int[Tensor, "rows"]] | None = None,
    ) -> Float[Tensor, "rows width"]:
        """Outputs, before the output layer, of the last of several more tokens of some rows, computed at once.

        Args:
            tokens: padded on the right. counts: number of tokens of each row.
            position, place: of each row's first token, in its sequence and in its cache.
            index: the row of the cache that each row has; it needs room for the padding too.
            prompts: (cache, slot of each row), if `cache` does not hold the prompts.
        """
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        places, width = place[:, None] + steps, int(place.max()) + len(steps)
        seen = torch.arange(width, device=tokens.device) <= places[..., None]
        if prompts is not None:
            shown, slots = prompts
            of_prompt = torch.arange(shown.states.shape[4], device=tokens.device) < shown.lengths[slots, None, None]
            seen = torch.cat([of_prompt.expand(-1, len(steps), -1), seen], 2)
        cos, sin = self.rotary(position[:, None] + steps)
        states, repeats = F.embedding(tokens, self.embedding), self.heads // self.key_heads
        for i, layer in self.path:
            query, key, value = self._projected(layer, states, cos, sin)
            both: list[Tensor] = []
            for kind, new in enumerate((key, value)):
                cached = cache.states[i, kind]
                cached[index[:, None], :, places] = new
                rows = cached[index, :, :width]
                if prompts is not None:
                    rows = torch.cat([shown.states[i, kind, slots], rows], 2)
                both.append(rows.repeat_interleave(repeats, 1))
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), both[0], both[1], attn_mask=seen[:, None], scale=self.scale
            )
            states = self._rest(layer, states, attended.transpose(1, 2).flatten(2))
        last = states[torch.arange(len(tokens), device=tokens.device), counts - 1]
        return self._rms(last, self.norm)
