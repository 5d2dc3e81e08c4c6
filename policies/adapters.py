"""LoRA adapters: adding them to a model, and the weights that act while they are active."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from policies.params import LoRA
from support.errors import ConfigError


def with_adapter(model: Any, lora: LoRA, task_type: str | None = "CAUSAL_LM") -> Any:
    """Add a fresh adapter to the model and freeze everything else.

    Raises:
        ConfigError: no layer of the model fits `lora.target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=task_type,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        layers = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        raise ConfigError(
            f"policy.lora.target_modules is {lora.target_modules!r}, which does not fit this model: {error} "
            f"Its layers are {', '.join(sorted(layers))}; all-linear takes all."
        ) from error


def without_wrapper(model: Any) -> Any:
    """The transformers model, with any adapter's layers in it but without peft's wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def is_adapted(module: nn.Module) -> bool:
    """Whether peft put adapters into this layer."""
    return hasattr(module, "lora_A")


@torch.no_grad()
def acting_weight(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer. With adapters the weight is a copy, otherwise it is the layer's own."""
    if not is_adapted(module):
        return module.weight, module.bias
    base = module.get_base_layer()
    weight = base.weight
    if not module.disable_adapters and not module.merged:
        for name in module.active_adapters:
            weight = weight + module.get_delta_weight(name).to(weight.dtype)
    return weight, base.bias


def acting_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters with their names in a transformers checkpoint, one at a time, active adapters added."""
    adapted: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(adapted) and adapted:
            continue
        if is_adapted(module):
            adapted = (*adapted, f"{name}.")
            weight, bias = acting_weight(module)
            yield f"{name}.weight", weight.detach()
            if bias is not None:
                yield f"{name}.bias", bias.detach()
        else:
            for part, parameter in module.named_parameters(recurse=False):
                yield f"{name}.{part}" if name else part, parameter.detach()
