"""The identity of what generates: two modules with an equal one draw the same completions."""

from dataclasses import asdict
from typing import Any

from lightning_modules.core.sampling_module import SamplingModule
from rollouts import SamplingParams
from support.files import fingerprint, weights_fingerprint
from support.identity import identity, identity_fingerprint, network_parts, replaced_methods, tokenizer_identity

#: entries of a model's configuration that tell where it came from
_ORIGIN = {"_name_or_path", "transformers_version", "_commit_hash"}


def generator(module: SamplingModule, sampling: SamplingParams) -> dict[str, Any]:
    """Everything that decides the completions of a module, as plain data; call it within `whole_weights`.

    It holds the weights that act (adapters added, with their scale), the model's configuration, the classes, settings
    and hooks of its parts, the tokenizer with its chat template and settings, the end tokens, the sampling settings,
    engine and environment with their settings, the code of all and the methods that Python replaced, the precision and
    the kind of device.
    """
    policy, config = module.policy, module.policy.bare.config.to_dict()
    buffers = ((name, buffer) for name, buffer in policy.bare.named_buffers() if ".lora_" not in name)
    # Without one the key is absent, as in certificates from before there were environments.
    environment = {} if module.environment is None else {"environment": identity(module.environment)}
    return environment | {
        "weights": weights_fingerprint(policy.weights()),
        "buffers": weights_fingerprint(buffers),
        "configuration": fingerprint([{name: value for name, value in config.items() if name not in _ORIGIN}]),
        "attention": getattr(policy.bare.config, "_attn_implementation", None),
        "parts": identity_fingerprint(network_parts(policy.bare)),
        "tokenizer": fingerprint([tokenizer_identity(policy.tokenizer)]),
        "end_tokens": list(policy.eos_token_ids),
        "sampling": asdict(sampling),
        "engine": [f"{type(module.engine).__module__}.{type(module.engine).__qualname__}", module.engine.identity()],
        "code": identity_fingerprint(
            type(module.engine), type(policy), *map(replaced_methods, (module.engine, policy))
        ),
        "dtype": policy.params.dtype,
        "precision": module.precision,
        "device": policy.device.type,
    }
