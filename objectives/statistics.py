"""Sums over the groups of prompts, and over the rows or tokens of all processes."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

#: sums a tensor over all processes; the identity for a single process
Reduce = Callable[[Tensor], Tensor]

#: divisor of the squared deviations: sample is n - 1, population is n
Deviation = Literal["sample", "population"]


def own(values: Tensor) -> Tensor:
    """The reduction of a single process."""
    return values


def as_floats(values: Any) -> Tensor:
    """Numbers as a tensor of floats: integers and lists are converted, float tensors stay as they are."""
    numbers: Tensor = torch.as_tensor(values)
    return numbers if numbers.is_floating_point() else numbers.to(torch.get_default_dtype())


def group_sums(values: Float[Tensor, "rows"], groups: Int[Tensor, "rows"]) -> Float[Tensor, "groups"]:
    """Sum of the values of each group; groups may differ in size."""
    count = int(groups.max()) + 1 if groups.numel() else 0
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, groups, values)


def group_statistics(
    rewards: Float[Tensor, "rows"], groups: Int[Tensor, "rows"], deviation: Deviation = "sample"
) -> tuple[Float[Tensor, "groups"], Float[Tensor, "groups"], Float[Tensor, "groups"]]:
    """(mean, standard deviation, count) of each group over its rows that are not NaN.

    Two passes, so that a group of equal rewards has a deviation of exactly zero. A group of one has deviation zero.
    """
    rewards, groups = as_floats(rewards), torch.as_tensor(groups)
    valid = ~rewards.isnan()
    clean = torch.where(valid, rewards, torch.zeros_like(rewards))
    count = group_sums(valid.to(rewards.dtype), groups)
    # Centring on one of the group's own values first keeps equal rewards equal after the division.
    anchor = torch.full_like(count, -torch.inf).scatter_reduce(0, groups[valid], clean[valid], "amax")
    offset = torch.where(valid, rewards - anchor[groups], torch.zeros_like(rewards))
    mean_offset = group_sums(offset, groups) / count.clamp(min=1)
    residual = torch.where(valid, offset - mean_offset[groups], torch.zeros_like(rewards))
    variance = group_sums(residual**2, groups) / (count - int(deviation == "sample")).clamp(min=1)
    return anchor + mean_offset, variance.sqrt(), count


def global_moments(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], reduce: Reduce = own, deviation: Deviation = "sample"
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(mean, variance) over the masked values of all processes.

    Sums are taken in float64: the mean of equal float32 numbers is then exactly that number, and their variance zero.
    """
    chosen = values.detach()[mask].cpu().double()
    total, count = reduce(torch.stack([chosen.sum(), chosen.new_tensor(chosen.numel())]))
    mean = total / count.clamp(min=1)
    squares = reduce(((chosen - mean) ** 2).sum())
    return mean, squares / (count - int(deviation == "sample")).clamp(min=1)
