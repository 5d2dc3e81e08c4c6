"""Weights as they act: with the active LoRA adapters added."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


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
    """All parameters by the names that they have in a checkpoint of transformers, one at a time."""
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
