"""Sharding of a policy's weights over processes (PyTorch's FSDP2)."""

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from policies.adapters import without_wrapper
from policies.policy import Policy
from policies.value_model import ValueModel
from support.errors import ConfigError


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
    if policy.value_head is not None:
        fully_shard(policy.value_head, mesh=mesh)  # in float32 whatever the model's dtype
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    # The first forward decides which module is the root; without this one it could be a layer's.
    policy(lambda: None)


def shard_critic(critic: ValueModel, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Give every process its part of every weight of a critic of its own; arguments as in `shard`.

    Raises:
        ConfigError: the critic's passes are not packed, and their number would differ between the processes.
    """
    if critic.way == "by_length":
        raise ConfigError(
            f"the critic {critic.params.model} is computed in passes over prompts of one length, which weights in "
            "shards do not allow; set policy.packing: true, or trainer.strategy: ddp."
        )
    precision = MixedPrecisionPolicy(dtype, None if dtype is None else torch.float32, cast_forward_inputs=False)
    for layer in _layers(critic.backbone):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(critic.head, mesh=mesh)
    fully_shard(critic, mesh=mesh, mp_policy=precision)


def _layers(model: Any) -> nn.ModuleList:
    layers: nn.ModuleList = without_wrapper(model).get_decoder().layers
    return layers
