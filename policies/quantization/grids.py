"""Grids of few bits, and rounding to the nearest of their points.

    asymmetric: s = (max - min) / (2^b - 1), z = round(-min/s), q = clamp(round(x/s) + z, 0, 2^b - 1), x^ = s (q - z)
    symmetric:  s = max |x| / (2^(b-1) - 1), q = clamp(round(x/s), -2^(b-1), 2^(b-1) - 1), x^ = s q

max is at least 0 and min at most 0, so that 0 is on every grid and zeros that pad a group change nothing. A group is a
run of consecutive entries of the last dimension with a scale (and a zero point) of its own.
"""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from support.errors import ConfigError

#: bits of what is not quantised, and of every scale
FLOAT_BITS = 16
#: fractions of a group's range that a clip search tries
CLIPS = tuple(1 - step / 20 for step in range(11))


class Bits(NamedTuple):
    """Bits of the weights, the activations and the cache of keys and values; 16 leaves them as they are."""

    weights: int = FLOAT_BITS
    activations: int = FLOAT_BITS
    cache: int = FLOAT_BITS

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """Read W4-A16-KV16. Raises ConfigError."""
        match = re.fullmatch(r"W(\d+)-A(\d+)-KV(\d+)", text)
        numbers = [int(number) for number in match.groups()] if match else []
        if not numbers or any(number not in (*range(2, 9), FLOAT_BITS) for number in numbers):
            raise ConfigError(
                f"model.bits has {text!r}; write the bits of weights, activations and cache as W4-A16-KV16, each from "
                "2 to 8, or 16 for what is not quantised."
            )
        return cls(*numbers)

    def __str__(self) -> str:
        return f"W{self.weights}-A{self.activations}-KV{self.cache}"


class Scales(NamedTuple):
    """Scales and zero points; a zero point is 0 for a symmetric grid.

    Fields:
        scale, zero: (..., groups, 1).
    """

    scale: Tensor
    zero: Tensor


@dataclass(frozen=True)
class Grid:
    """The grids of a tensor's rows.

    Args:
        bits: number of bits of a value.
        group: entries that share a scale; None for all entries of a row.
        symmetric: without a zero point.
        clip: fraction of the range that the grid covers; values beyond are moved to its ends.
    """

    bits: int
    group: int | None = None
    symmetric: bool = False
    clip: float = 1.0

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        if self.symmetric:
            return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        return 0, (1 << self.bits) - 1

    def grouped(self, values: Float[Tensor, "... n"]) -> Float[Tensor, "... groups size"]:
        """The values in groups, the last one filled up with zeros."""
        size = min(self.group or values.shape[-1], values.shape[-1])
        missing = -values.shape[-1] % size
        groups: Tensor = F.pad(values, (0, missing)).unflatten(-1, (-1, size))
        return groups

    def scales(self, groups: Float[Tensor, "... groups size"], clip: float | None = None) -> Scales:
        """Scales of values in groups."""
        clip = self.clip if clip is None else clip
        low, high = self.limits
        largest, smallest = groups.amax(-1, keepdim=True).clamp(min=0), groups.amin(-1, keepdim=True).clamp(max=0)
        if self.symmetric:
            scale = clip * torch.maximum(largest, -smallest) / high
        else:
            scale = clip * (largest - smallest) / (high - low)
        scale = torch.where(scale < torch.finfo(scale.dtype).tiny, 1.0, scale)  # a group of zeros
        zero = torch.zeros_like(scale) if self.symmetric else (-clip * smallest / scale).round()
        return Scales(scale, zero)

    def rounded(self, values: Tensor, scales: Scales) -> Tensor:
        """The nearest points of the grids, as floats."""
        low, high = self.limits
        integers = ((values / scales.scale).round() + scales.zero).clamp(low, high)
        return scales.scale * (integers - scales.zero)

    def quantized(self, values: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """Round to the nearest, with scales of the values themselves."""
        groups = self.grouped(values)
        return self.rounded(groups, self.scales(groups)).flatten(-2)[..., : values.shape[-1]]

    def searched(self, groups: Tensor, hessians: Float[Tensor, "groups size size"] | None = None) -> Scales:
        """Scales whose clip, one of CLIPS for each group, has the smallest error.

        Args:
            groups: (rows, groups, size).
            hessians: second moments of the inputs of each group, which weigh the error; None for the squared error of
                the values.
        """
        best: Tensor | None = None
        result = self.scales(groups, 1.0)
        for clip in CLIPS:
            scales = self.scales(groups, clip)
            gap = self.rounded(groups, scales) - groups
            weighed = gap if hessians is None else torch.einsum("rgi,gij->rgj", gap, hessians)
            error = (weighed * gap).sum(-1, keepdim=True)
            if best is None:
                best, result = error, scales
            else:
                better = error < best
                best = torch.where(better, error, best)
                result = Scales(*(torch.where(better, new, old) for new, old in zip(scales, result, strict=True)))
        return result

    def stored_bits(self, rows: int, columns: int) -> float:
        """Bits per value with its share of the scales (16 bits) and of the zero points (as wide as a value)."""
        groups = math.ceil(columns / min(self.group or columns, columns)) * rows
        per_group = FLOAT_BITS + (0 if self.symmetric else self.bits)
        return self.bits + groups * per_group / (rows * columns)


def by_column(scales: Scales, columns: int, size: int) -> Scales:
    """Scales of groups as scales of every column: (rows, columns)."""
    return Scales(*(part[..., 0].repeat_interleave(size, -1)[..., :columns] for part in scales))
