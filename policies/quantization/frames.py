"""Changes of basis in which a layer is easier to quantise, and which leave the float layer as it is.

    x' = (x / s) Q,   W' = (W s) Q,   x' W'^T = x W^T        s: one factor per input, Q: orthogonal

SmoothQuant (arXiv 2211.10438) chooses s_j = max |X_j|^a / max |W_j|^(1-a), AWQ (arXiv 2306.00978) a power of the mean
|X_j|, and QuaRot (arXiv 2404.00456) rotates by a Hadamard matrix. W' and x' are rounded and moved back, so that the
layer keeps its basis: weights alone need no other code at inference, and the result is that of the folded factors.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from scipy.linalg import hadamard
from torch import Tensor

#: smallest factor
SMALLEST = 1e-4


@lru_cache(maxsize=16)
def _rotation(size: int, seed: int) -> Tensor:
    power = size & -size
    odd = size // power
    steps = torch.arange(odd, dtype=torch.float64, device="cpu")
    angles = 2 * torch.pi * (steps[:, None] * steps).remainder(odd) / odd
    mixed = (angles.cos() + angles.sin()) / odd**0.5  # Hartley's matrix: orthogonal, its entries of similar size
    basis = torch.kron(torch.tensor(hadamard(power), dtype=torch.float64, device="cpu") / power**0.5, mixed)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (size, 1), generator=generator, device="cpu").double() * 2 - 1
    return signs * basis


def rotation(size: int, device: torch.device, seed: int = 0) -> Float[Tensor, "size size"]:
    """A randomised Hadamard matrix, orthogonal, its entries of similar size.

    For a size that is no power of two: the Kronecker product of a Hadamard matrix and the Hartley matrix of the odd
    factor. Random signs keep inputs of equal values from meeting in one output.
    """
    return _rotation(size, seed).to(device, torch.float32)


class Frame:
    """The basis of one layer, or of all layers with the same inputs.

    Args:
        scale: (inputs,), None for 1.
        rotation: (inputs, inputs), None for none.
    """

    def __init__(self, scale: Tensor | None = None, rotation: Tensor | None = None) -> None:
        self.scale, self.rotation = scale, rotation

    def inputs(self, values: Float[Tensor, "... inputs"]) -> Float[Tensor, "... inputs"]:
        """Inputs in the new basis, x'."""
        values = values if self.scale is None else values / self.scale
        return values if self.rotation is None else values @ self.rotation

    def inputs_back(self, values: Float[Tensor, "... inputs"]) -> Float[Tensor, "... inputs"]:
        """Inputs back in the layer's own basis, x of x'."""
        values = values if self.rotation is None else values @ self.rotation.T
        return values if self.scale is None else values * self.scale

    def weight(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """The weight in the new basis, W'."""
        weight = weight if self.scale is None else weight * self.scale
        return weight if self.rotation is None else weight @ self.rotation

    def weight_back(self, weight: Float[Tensor, "outputs inputs"]) -> Float[Tensor, "outputs inputs"]:
        """The weight back in the layer's own basis, W of W'."""
        weight = weight if self.rotation is None else weight @ self.rotation.T
        return weight if self.scale is None else weight / self.scale

    def hessian(self, hessian: Float[Tensor, "inputs inputs"]) -> Float[Tensor, "inputs inputs"]:
        """Second moments of x'."""
        half = self.inputs(hessian)
        return self.inputs(half.T)


def smoothing(abs_max: Float[Tensor, "inputs"], weights: list[Tensor], alpha: float) -> Float[Tensor, "inputs"]:
    """SmoothQuant's factors for layers with the same inputs.

    Args:
        abs_max: largest absolute value of every input over the calibration data.
        weights: (outputs, inputs) of every layer.
    """
    of_weights = torch.cat(weights).abs().amax(0).clamp(min=SMALLEST)
    return (abs_max.clamp(min=SMALLEST) ** alpha / of_weights ** (1 - alpha)).clamp(min=SMALLEST)


def activation_scale(abs_mean: Float[Tensor, "inputs"], power: float) -> Float[Tensor, "inputs"]:
    """AWQ's factors for one power of the mean absolute input."""
    scale = (abs_mean**power).clamp(min=SMALLEST)
    return scale / (scale.max() * scale.min()).sqrt()
