"""Checks of a model's config.json before a library acts on it."""

from collections.abc import Iterator
from typing import Any

from transformers import FineGrainedFP8Config, Mxfp4Config, PretrainedConfig

from support.errors import ConfigError

#: forms of quantised weights that transformers turns into plain ones when it reads them
DEQUANTISED: dict[str, Any] = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
#: layers of a model; the largest published ones have fewer than 200, and each costs time before a weight is read
MOST_LAYERS = 1000


def check_config(place: str) -> dict[str, Any]:
    """Refuse a config.json that names a kernel of the hub, which is code, has an absurd number of layers, or says that
    weights are quantised in a form that cannot be trained.

    Args:
        place: a model's folder, or its hub id.

    Returns:
        The arguments with which `from_pretrained` reads the weights as plain numbers.

    Raises:
        ConfigError: for such a configuration.
        Exception: of any type, for one that cannot be read.
    """
    settings, _ = PretrainedConfig.get_config_dict(place, trust_remote_code=False)
    arguments: dict[str, Any] = {}
    for name, value in _values(settings):
        if name == "quantization_config" and value:
            method = value.get("quant_method") if isinstance(value, dict) else value
            if method not in DEQUANTISED:
                raise ConfigError(
                    f"the config.json of {place} says that its weights are quantised ({method}). Training and merging "
                    "adapters need plain weights: name the model before quantisation with policy.model."
                )
            arguments["quantization_config"] = DEQUANTISED[method](dequantize=True)
        if "implementation" in name and isinstance(value, str) and "/" in value:
            raise ConfigError(
                f"the config.json of {place} sets {name} to {value!r}, a kernel of the hub, which is code of another "
                "origin and is not loaded. Remove this key, or set it to sdpa or eager."
            )
        if "layer" in name and isinstance(value, int) and value > MOST_LAYERS:
            raise ConfigError(
                f"the config.json of {place} sets {name} to {value}, and at most {MOST_LAYERS} are read. Correct it, "
                "or name another model with policy.model."
            )
    return arguments


def context_of(config: Any) -> tuple[int | None, str]:
    """(the longest sequence in tokens that a model computes as a policy must, what happens beyond it).

    None for a model that states no limit. With longrope it is the original context: beyond it, the model computes all
    positions otherwise, so that a token's log-prob depends on later tokens and on the rows beside it.
    """
    config = config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    context, remark = (length, "") if length is not None and length > 0 else (None, "")  # XLNet says -1
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        original = part.get("original_max_position_embeddings")
        if part.get("rope_type") == "longrope" and original is not None and (context is None or original < context):
            context, remark = original, ", beyond which its longrope changes the positions of all tokens"
    return context, remark


def check_length(config: Any, tokens: int, what: str) -> None:
    """Refuse a sequence that is longer than the model's context.

    Args:
        what: the sequence, as the beginning of a sentence.

    Raises:
        ConfigError: states both lengths.
    """
    context, remark = context_of(config)
    if context is not None and tokens > context:
        raise ConfigError(
            f"{what} has {tokens} tokens, more than the model's context of {context} tokens{remark}; shorten or drop "
            "it."
        )


def _values(settings: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of a configuration and of those inside it; a value inside a value has the outer key too."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        yield str(name), value
        if isinstance(value, dict):
            for inner, item in _values(value):
                yield (f"{name}.{inner}" if "implementation" in str(name) else inner), item
