"""Outliers in the activations of a model that has none, without changing what the float model computes.

Small models have few outliers, so methods against them have little to do. A channel behind a norm gets the factor s in
the norm's gain, and 1/s in the columns of the matrices that read it; the same between the MLP's up and down projection.
"""

from typing import Any

import torch

from support.errors import ConfigError

#: channels of every place that are scaled
CHANNELS = 2


@torch.no_grad()
def inject_outliers(policy: Any, factor: float, channels: int = CHANNELS) -> None:
    """Scale a few channels of every layer in place.

    Args:
        policy: with a Llama-shaped model; adapters must be merged.
        factor: of the channels.
        channels: number of them in every place, evenly spread.

    Raises:
        ConfigError: the model is built differently from Llama.
    """
    ids = torch.arange(min(8, policy.vocabulary), device=policy.device)[None]
    before = policy.bare(input_ids=ids, use_cache=False).logits
    try:
        for layer in policy.bare.get_decoder().layers:
            attention, mlp = layer.self_attn, layer.mlp
            places = [
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
                (mlp.up_proj, (mlp.down_proj,)),
            ]
            for source, readers in places:
                size = len(base(source).weight)
                chosen = torch.arange(channels, device=base(source).weight.device) * (size // channels) + size // 5
                base(source).weight[chosen] *= factor
                if getattr(base(source), "bias", None) is not None:
                    base(source).bias[chosen] *= factor
                for reader in readers:
                    base(reader).weight[:, chosen] /= factor
    except AttributeError as error:
        raise ConfigError(
            f"{type(policy.bare).__name__} is built differently from Llama ({error}), so no outliers can be injected; "
            "set model.outliers to 1."
        ) from error
    after = policy.bare(input_ids=ids, use_cache=False).logits
    if not (after - before).abs().max() <= 1e-2 * before.abs().max():
        raise ConfigError(
            f"the norms of {type(policy.bare).__name__} are not those of Llama, so outliers would change what the "
            "model computes; set model.outliers to 1."
        )


def base(module: Any) -> Any:
    """The layer inside of an adapter."""
    return getattr(module, "base_layer", module)
