"""Norms of the gradients by layer."""

import re
from collections.abc import Iterator
from statistics import mean
from typing import Any

import lightning as L
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from support.errors import ConfigError

_LAYER = re.compile(r"\.(\d+)\.")
#: parts of parameter names that name no layer
_NO_LAYER = {"weight", "bias", "default", "lora_A", "lora_B", "base_layer", "modules_to_save", "original_module"}


class GradientNorms(L.Callback):
    """Log the norm of the gradients of each layer as train/grad_norm/<layer>: layer_03, embed_tokens, lm_head.

    A norm is the Euclidean norm of a layer's gradients as the optimiser gets them: averaged over processes, after
    clipping to `max_grad_norm`. A rollout with several updates has their mean; skipped updates do not count. A critic's
    layers have its name before theirs.

    Args:
        every_n_rollouts: rollouts between two measurements.

    Raises:
        ConfigError: for `every_n_rollouts` below 1.
    """

    def __init__(self, every_n_rollouts: int = 1) -> None:
        if every_n_rollouts < 1:
            raise ConfigError(f"GradientNorms: every_n_rollouts is {every_n_rollouts}; it must be at least 1.")
        self.every_n_rollouts = every_n_rollouts
        self._norms: dict[str, list[float]] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % self.every_n_rollouts:
            return
        gradients: dict[str, list[Tensor]] = {}
        for name, gradient in _gradients(pl_module):
            gradients.setdefault(layer_of(name), []).append(gradient)
        for layer, tensors in gradients.items():
            norm = get_total_norm(tensors)
            self._norms.setdefault(layer, []).append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for layer, norms in self._norms.items():
            pl_module.log(f"train/grad_norm/{layer}", mean(norms), batch_size=1)  # equal on all processes
        self._norms = {}


def _gradients(module: Any) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def layer_of(name: str) -> str:
    """The layer of a parameter by its dotted name: that of the first number in it, else the innermost module."""
    part, dot, inner = name.partition(".")
    if not dot:
        return part
    prefix = "" if part == "policy" else f"{part}_"
    if (number := _LAYER.search(f".{inner}.")) is not None:
        return f"{prefix}layer_{int(number[1]):02d}"
    modules = [step for step in inner.split(".") if step not in _NO_LAYER]
    return f"{prefix}{modules[-1]}" if modules else part
