"""Weights in shards (PyTorch's FSDP2), gathered while code reads them directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


def sharded_modules(model: nn.Module, without: nn.Module | None) -> list[Any]:
    """The modules of `model` whose weights are in shards, except those of `without`."""
    excluded = set() if without is None else set(without.modules())
    return [module for module in model.modules() if isinstance(module, FSDPModule) and module not in excluded]


@contextmanager
def gathered_weights(modules: list[Any], root: nn.Module) -> Iterator[None]:
    """Gather the weights of these modules on every process, and shard them again at the end.

    Args:
        modules: as from `sharded_modules`.
        root: the module that contains all others, whose weights FSDP2 gathers once per pass anyway.
    """
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            if module is not root:
                module.set_reshard_after_forward(True, recurse=False)
