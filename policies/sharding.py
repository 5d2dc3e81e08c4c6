"""Weights in shards over processes (PyTorch's FSDP2), and whole again where they are read directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

if TYPE_CHECKING:
    from policies.policy import Policy


def shard(policy: "Policy", mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Give every process its part of every weight. A decoder layer is gathered for the length of its forward and backward pass; what is outside of the
    layers (embedding, last norm, output layer) belongs to the policy itself, whose forward is the scoring of completions.

    Args:
        mesh: of one dimension, the processes that share the weights.
        dtype: in which weights are gathered and multiplied, while shards, gradients and optimiser keep their own; their own if None.
    """
    precision = MixedPrecisionPolicy(dtype, None if dtype is None else torch.float32, cast_forward_inputs=False)
    if policy.params.lora is not None and policy.with_reference:
        policy.add_reference_adapter()  # a later one would not be in shards; a fresh adapter changes nothing, so until a reset it is the model without one
    for model in filter(None, (policy.model, policy.reference)):
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    # The first forward decides which module is the root; without this one it could be a layer's.
    policy(lambda: None)


def _layers(model: Any) -> nn.ModuleList:
    bare = model.get_base_model() if hasattr(model, "peft_config") else model
    layers: nn.ModuleList = bare.get_decoder().layers
    return layers


@contextmanager
def whole(policy: "Policy") -> Iterator[None]:
    """The policy's weights gathered on every process, for code that reads them itself; a reference's stay in shards. A part of every process's work: none
    may leave it out, but for one within another."""
    root: nn.Module = policy
    reference = set() if policy.reference is None else set(policy.reference.modules())
    parts = (
        []
        if policy.is_whole
        else [module for module in policy.modules() if isinstance(module, FSDPModule) and module not in reference]
    )
    if parts:
        policy.version_in_shards = policy.version  # gathered copies do not count their changes
    within, policy.is_whole = policy.is_whole, True
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        policy.is_whole = within
        for part in parts:
            part.reshard()
            if part is not root:  # gathered once a pass anyway
                part.set_reshard_after_forward(True, recurse=False)
