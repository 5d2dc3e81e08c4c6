"""Linear layers that really multiply 8-bit integers: int8 weights by channel, inputs by token, sums in int32.

They compute what fake quantisation computes at W8-A8 with symmetric weights by channel, up to the rounding of float32.
`torch._int_mm` needs no other package. torchao (extra `quantize`) has the same scheme with kernels of its own.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from policies.quantization.statistics import layers_of, matrix

#: largest integer
LARGEST = 127


def to_int8(values: Float[Tensor, "rows n"]) -> tuple[Tensor, Float[Tensor, "rows 1"]]:
    """(int8 values, scales) of rows."""
    scale = values.abs().amax(1, keepdim=True) / LARGEST
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, 1.0, scale)
    return (values / scale).round().clamp(-LARGEST - 1, LARGEST).to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer with weights in int8, for inference.

    Args:
        layer: a linear layer, or transformers' Conv1D.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight, scale = to_int8(matrix(layer).detach().float())
        bias: Any = layer.bias
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        # Transposed and contiguous: the layout in which the product reads the weights fastest on a CPU.
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, inputs: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        rows, scale = to_int8(inputs.reshape(-1, inputs.shape[-1]).float())
        outputs = torch._int_mm(rows, self.weight).float() * (scale * self.scale)
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.view(*inputs.shape[:-1], -1).to(inputs.dtype)


def use_int8_layers(policy: Any) -> int:
    """Replace the layers of a policy for inference; returns their number. The policy cannot be trained afterwards."""
    layers = layers_of(policy)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(policy.bare.get_submodule(parent), child, Int8Linear(layer))
    return len(layers)
