"""Checks of a model's config.json before a library acts on it."""

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

from support.errors import ConfigError

#: layers of a model; the largest published ones have fewer than 200, and each costs time before a weight is read
MOST_LAYERS = 1000


def check_config(place: str) -> None:
    """Refuse a config.json that names a kernel of the hub, which is code, or has an absurd number of layers.

    Args:
        place: a model's folder, or its hub id.

    Raises:
        ConfigError: for such a configuration.
        Exception: of any type, for one that cannot be read.
    """
    settings, _ = PretrainedConfig.get_config_dict(place, trust_remote_code=False)
    for name, value in _values(settings):
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


def _values(settings: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of a configuration and of those inside it; a value inside a value has the outer key too."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        yield str(name), value
        if isinstance(value, dict):
            for inner, item in _values(value):
                yield (f"{name}.{inner}" if "implementation" in str(name) else inner), item
