"""The choice of basis, grids and rounding, in which RTN, GPTQ, AWQ, SmoothQuant and QuaRot differ."""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from policies.quantization.frames import Frame, activation_scale, rotation, smoothing
from policies.quantization.gptq import gptq, output_errors
from policies.quantization.grids import FLOAT_BITS, Bits, Grid, Scales
from policies.quantization.statistics import InputStatistics
from support.errors import ConfigError

#: number of powers that AWQ tries, evenly from 0 to below 1
POWERS = 20


@dataclass(frozen=True)
class QuantizationMethod:
    """A method; its parts combine freely.

    Args:
        name: in tables and metrics.
        bits: its rows of the matrix, such as W4-A16-KV16; the module's `bits` if None.
        rounding: of the weights, to the nearest or by GPTQ.
        scaling: factors of the inputs, by AWQ or SmoothQuant.
        rotation: rotate inputs, and keys and values, by a Hadamard matrix (QuaRot).
        group: weights of a row that share a scale; None for whole rows (per channel).
        symmetric: weights without a zero point. Activations never have one, keys and values always.
        clip_search: search the range of every group; with AWQ by the output error, else by the squared error.
        alpha: SmoothQuant's exponent of the activations.
        act_order, damping: of GPTQ.
        activation_clip, cache_clip: fraction of the range that is kept.
        cache_group: entries of a head's key or value that share a scale; None for the whole head.
        keys: by token, or, as in KVQuant, by channel before the rotary positions, with ranges of the calibration data.
    """

    name: str
    bits: list[str] | None = None
    rounding: Literal["nearest", "gptq"] = "nearest"
    scaling: Literal["none", "awq", "smoothquant"] = "none"
    rotation: bool = False
    group: int | None = 128
    symmetric: bool = False
    clip_search: bool = False
    alpha: float = 0.85
    act_order: bool = True
    damping: float = 0.01
    activation_clip: float = 1.0
    cache_clip: float = 1.0
    cache_group: int | None = 128
    keys: Literal["token", "channel"] = "token"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w. -]+", self.name):
            raise ConfigError(f"the method's name is {self.name!r}; use letters, digits, blanks and . _ - only.")
        numbers = {
            "group": self.group is None or self.group >= 1,
            "cache_group": self.cache_group is None or self.cache_group >= 1,
            "alpha": 0 <= self.alpha <= 1,
            "damping": self.damping > 0,
            "activation_clip": 0 < self.activation_clip <= 1,
            "cache_clip": 0 < self.cache_clip <= 1,
        }
        if wrong := [name for name, holds in numbers.items() if not holds]:
            raise ConfigError(
                f"the method {self.name!r} has {wrong[0]} {getattr(self, wrong[0])}; groups are 1 or more or null, "
                "alpha is from 0 to 1, clips are above 0 and at most 1, damping is above 0."
            )

    def acting(self, bits: Bits) -> tuple[object, ...]:
        """The settings that act at these bits: two methods with equal values give the same model."""
        weights: tuple[object, ...] = (
            (self.rounding, self.group, self.symmetric, self.clip_search) if bits.weights < FLOAT_BITS else ()
        )
        if weights and self.rounding == "gptq":
            weights += (self.act_order, self.damping)
        inputs: tuple[object, ...] = ()
        if min(bits.weights, bits.activations) < FLOAT_BITS:
            inputs = (self.scaling, self.alpha if self.scaling == "smoothquant" else None, self.rotation)
        if bits.activations < FLOAT_BITS:
            inputs += (self.activation_clip,)
        cache = (self.cache_clip, self.cache_group, self.keys, self.rotation) if bits.cache < FLOAT_BITS else ()
        return bits, weights, inputs, cache

    def weight_grid(self, bits: int) -> Grid:
        return Grid(bits, self.group, self.symmetric)

    def activation_grid(self, bits: int) -> Grid:
        """Of one token's inputs."""
        return Grid(bits, None, True, self.activation_clip)

    def cache_grid(self, bits: int) -> Grid:
        return Grid(bits, self.cache_group, False, self.cache_clip)

    def frame(self, statistics: InputStatistics, weights: list[Tensor], bits: Bits) -> Frame:
        """The basis of layers with the same inputs.

        Args:
            weights: (outputs, inputs) of every layer, in float32.
        """
        scale: Tensor | None = None
        if self.scaling == "smoothquant":
            scale = smoothing(statistics.abs_max, weights, self.alpha)
        elif self.scaling == "awq" and bits.weights < FLOAT_BITS:
            scale = self._awq_scale(statistics, weights, self.weight_grid(bits.weights))
        size = weights[0].shape[1]
        return Frame(scale, rotation(size, weights[0].device) if self.rotation else None)

    def _awq_scale(self, statistics: InputStatistics, weights: list[Tensor], grid: Grid) -> Tensor:
        best, best_error = torch.ones_like(statistics.abs_mean), float("inf")
        for number in range(POWERS):
            scale = activation_scale(statistics.abs_mean, number / POWERS)
            gaps = [grid.quantized(weight * scale) / scale - weight for weight in weights]
            error = sum(float(output_errors(gap, statistics.hessian).sum()) for gap in gaps)
            if error < best_error:
                best, best_error = scale, error
        return best

    def rounded(self, weight: Tensor, statistics: InputStatistics, frame: Frame, bits: int) -> Tensor:
        """The quantised weight of a layer, (outputs, inputs), back in its own basis."""
        grid, framed = self.weight_grid(bits), frame.weight(weight)
        groups = grid.grouped(framed)
        scales: Scales = grid.scales(groups)
        needed = self.rounding == "gptq" or (self.clip_search and self.scaling == "awq")
        hessian = frame.hessian(statistics.hessian) if needed else None
        if self.clip_search:
            blocks = (
                diagonal_blocks(hessian, groups.shape[-1]) if self.scaling == "awq" and hessian is not None else None
            )
            scales = grid.searched(groups, blocks)
        result = grid.rounded(groups, scales).flatten(-2)[:, : framed.shape[1]]
        if self.rounding == "gptq":
            assert hessian is not None
            nearest = result
            result = gptq(framed, hessian, grid, scales=scales, act_order=self.act_order, damping=self.damping)
            # GPTQ is greedy. A row that it makes worse on the calibration data is rounded to the nearest.
            worse = output_errors(result - framed, hessian) > output_errors(nearest - framed, hessian)
            result = torch.where(worse[:, None], nearest, result)
        return frame.weight_back(result)


def diagonal_blocks(matrix: Tensor, size: int) -> Tensor:
    """Blocks on the diagonal, (blocks, size, size), the last one filled up with zeros."""
    missing = -len(matrix) % size
    padded = torch.nn.functional.pad(matrix, (0, missing, 0, missing))
    return torch.stack([padded[start : start + size, start : start + size] for start in range(0, len(padded), size)])
