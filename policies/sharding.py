"""Sharding of a policy's weights over processes (PyTorch's FSDP2)."""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from policies.adapters import without_wrapper
from policies.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Give every process its part of every weight.

    A decoder layer is gathered for the length of its forward and backward pass. The weights outside of the layers
    (embedding, last norm, output layer) belong to the policy itself, whose forward is the scoring of completions.

    Args:
        mesh: of one dimension, the processes that share the weights.
        dtype: in which weights are gathered and multiplied, while shards, gradients and optimiser keep the weights' own
            dtype; None multiplies in that too.
    """
    precision = MixedPrecisionPolicy(dtype, None if dtype is None else torch.float32, cast_forward_inputs=False)
    if policy.params.lora is not None and policy.with_reference:
        # An adapter added later would not be in shards. A fresh one changes nothing: until a reset, the reference is
        # still the model without an adapter.
        policy.add_reference_adapter()
    for model in filter(None, (policy.model, policy.reference)):
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    # The first forward decides which module is the root; without this one it could be a layer's.
    policy(lambda: None)


def _layers(model: Any) -> nn.ModuleList:
    layers: nn.ModuleList = without_wrapper(model).get_decoder().layers
    return layers
