"""Values of the states before completion tokens: a linear head on a decoder's outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.packing import PromptGroups


def zero_head(config: Any, outputs: int = 1) -> nn.Linear:
    """A linear layer in float32 on the last hidden states of a model with this configuration; it starts at zero."""
    head = nn.Linear(config.get_text_config(decoder=True).hidden_size, outputs, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


@contextmanager
def decoder_outputs(model: Any) -> Iterator[list[Float[Tensor, "rows time size"]]]:
    """The last hidden states of every forward pass of the model's decoder meanwhile."""
    outputs: list[Tensor] = []
    hook = model.get_decoder().register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
    try:
        yield outputs
    finally:
        hook.remove()


def token_values(
    head: nn.Module, way: str, groups: PromptGroups, outputs: list[Float[Tensor, "rows time size"]]
) -> Float[Tensor, "rows time heads"]:
    """Values of the state before every completion token; arbitrary outside the completion mask.

    Args:
        way: how the forward passes were made, one of policies/start_checks.WAYS.
        outputs: the decoder's, in the order of the passes.
    """
    time = groups.completion_ids.shape[1]
    if way == "packed":
        values = _apply(head, outputs[0][0].index_select(0, groups.packed.source))
        mask = groups.completion_mask[..., None].expand(*groups.completion_mask.shape, values.shape[1])
        return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)
    values = _apply(head, torch.cat([output[:, -time - 1 : -1] for output in outputs]))
    if way == "by_length":  # the passes took the rows by the length of their prompts
        lengths = groups.prompt_mask.sum(1)[groups.owner]
        values = values[lengths.argsort(stable=True).argsort()]
    return values


def _apply(head: nn.Module, states: Tensor) -> Tensor:
    """The head's outputs in float32, also under autocast: a target is regressed on, not a direction."""
    with torch.autocast(states.device.type, enabled=False):
        values: Tensor = head(states.float())
        return values
