"""Training and evaluation mode of a policy's model.

The log-probs of an update must be those of the policy that sampled. In training mode many models compute something
else: dropout, layer dropout, noise on a router's input. A policy's model therefore stays in evaluation mode also while
it learns, except for what its settings ask for: the adapters' dropout, and with `policy.dropout` the model's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def set_mode(model: nn.Module, training: bool, dropout: bool) -> None:
    """Put a model into the mode of updates (`training`) or into evaluation mode.

    Args:
        dropout: whether the model's own dropout, and its other noise, acts in updates.
    """
    model.train(training and dropout)
    if training:
        for name, module in model.named_modules():
            if name.rpartition(".")[2] == "lora_dropout":
                module.train()
            elif getattr(module, "gradient_checkpointing", False):
                module.training = True  # layers recompute their activations in training mode only


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put all parts of a model into evaluation mode, and each back into its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def checkpoint_layers(model: Any, dropout: bool) -> None:
    """Let the layers of a transformers model recompute their activations in the backward pass.

    A layer does so in training mode only, in which some layers apply dropout of their own; without `dropout` its
    forward therefore runs in evaluation mode.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    if not dropout:
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module._gradient_checkpointing_func = partial(_checkpoint, module)


def _checkpoint(layer: nn.Module, forward: Callable[..., Any], *arguments: Any) -> Any:
    def evaluated(*inputs: Any) -> Any:
        was_training, layer.training = layer.training, False
        try:
            return forward(*inputs)
        finally:
            layer.training = was_training

    return checkpoint(evaluated, *arguments, use_reentrant=False)
