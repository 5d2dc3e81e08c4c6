"""Quantised caches of keys and values: attention reads every key and value as the cache would have stored it.

A token's scales depend on this token alone (or, for keys by channel, on calibration data), so rounding what attention
reads is the same as rounding what the cache stores, and works for packed, padded and cached forwards alike.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from policies.packing import SHARED_PREFIX, shared_prefix_attention
from policies.quantization.frames import rotation
from policies.quantization.grids import Grid, Scales
from support.errors import ConfigError

QUANTIZED_CACHE = "quantized_cache"
Rounding = Callable[[Tensor], Tensor]


def by_token(grid: Grid, rotated: bool) -> Rounding:
    """Rounds (..., size) states of heads with scales of each token and head, rotated by a Hadamard matrix if asked."""

    def rounded(states: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        values = states.float()
        if not rotated:
            return grid.quantized(values).to(states.dtype)
        turn = rotation(states.shape[-1], states.device)
        with torch.autocast(states.device.type, enabled=False):
            return (grid.quantized(values @ turn) @ turn.T).to(states.dtype)

    return rounded


@contextmanager
def quantized_cache(policy: Any, keys: Rounding | None, values: Rounding) -> Iterator[None]:
    """Context in which the model's attention reads rounded keys and values.

    Args:
        keys: None for keys that are rounded elsewhere (`quantized_keys`).

    Raises:
        ConfigError: the model's attention cannot be replaced.
    """
    bare, calls = policy.bare, 0
    before = bare.config._attn_implementation
    if not getattr(bare, "_supports_attention_backend", False) or before not in ("sdpa", SHARED_PREFIX):
        raise ConfigError(
            f"the attention of {type(bare).__name__} ({before}) cannot read a quantised cache, which needs a model "
            "that computes it by PyTorch's scaled dot product; set KV16 in model.bits."
        )

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        key = key if keys is None else keys(key)
        return shared_prefix_attention(module, query, key, values(value), *rest, **options)

    AttentionInterface.register(QUANTIZED_CACHE, attention)
    AttentionMaskInterface.register(QUANTIZED_CACHE, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    bare.set_attn_implementation(QUANTIZED_CACHE)
    try:
        yield
    finally:
        bare.set_attn_implementation(before)
    if not calls:
        raise ConfigError(
            f"{type(bare).__name__} computes its attention itself, so its cache cannot be quantised; set KV16 in "
            "model.bits."
        )


def key_layers(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The projections to keys. Raises ConfigError for a model that has none of its own."""
    chosen = {name: module for name, module in layers.items() if name.removesuffix(".base_layer").endswith("k_proj")}
    if not chosen:
        raise ConfigError(
            "keys are to be quantised by channel, but no layer of this model is named k_proj; set the method's keys "
            "to token."
        )
    return chosen


@torch.no_grad()
def key_ranges(module: Any, inputs: Float[Tensor, "tokens inputs"], grid: Grid) -> Scales:
    """Scales of every channel of the keys, without their bias, over the sample of a layer's inputs: (channels, 1)."""
    keys = inputs @ module.weight.float().T
    return Scales(*(part[:, 0] for part in grid.scales(keys.T[:, None])))


@contextmanager
def quantized_keys(ranges: dict[nn.Module, Scales], grid: Grid) -> Iterator[None]:
    """Context in which keys are rounded by channel, before their bias is added and their positions are rotated."""

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        scale, zero = (part[:, 0] for part in ranges[module])
        bias = 0.0 if module.bias is None else module.bias.float()
        return (grid.rounded(output.float() - bias, Scales(scale, zero)) + bias).to(output.dtype)

    handles = [module.register_forward_hook(hook) for module in ranges]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
