"""Communication between the processes of one run: gathered objects, sums, means and maxima.

Each function gives the same result on every process, and all processes must call it. In a run of one process, or inside
`alone`, they return what they were given.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def alone() -> Iterator[None]:
    """Hide the process group, for a training that one process of a run does while the others wait.

    Libraries that are called inside see a single process, so none of them waits for an answer that never comes.
    """
    real = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = real


def _connected() -> bool:
    """Whether this process belongs to a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def process_count() -> int:
    """The number of processes of the run."""
    return torch.distributed.get_world_size() if _connected() else 1


def gathered(item: Any) -> list[Any]:
    """The item of every process, in the order of their ranks; a list of this one item if there are no others."""
    if not _connected():
        return [item]
    items: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(items, item)
    return items


def part_of_process(items: Sequence[Any], rank: int, processes: int, updates: int = 1) -> list[Any]:
    """The items of a whole rollout that belong to one process: a contiguous part of every update.

    An update on several processes thereby has the same items as on one.

    Args:
        items: of all processes, in the order of one process; a multiple of `processes` times `updates`.
        rank, processes: rank of the process and number of processes.
        updates: number of equal, contiguous parts of the whole that are updates.
    """
    per_update, size = len(items) // updates, len(items) // (updates * processes)
    starts = range(rank * size, updates * per_update, per_update)
    return [item for start in starts for item in items[start : start + size]]


def in_one_order(parts: Sequence[Sequence[Any]], updates: int = 1) -> list[Any]:
    """The items of all processes in the order of one process; the inverse of `part_of_process`.

    Args:
        parts: items of every process, in the order of their ranks.
        updates: as in `part_of_process`.
    """
    keyed = [
        ((place // max(1, math.ceil(len(part) / updates)), rank, place), item)
        for rank, part in enumerate(parts)
        for place, item in enumerate(part)
    ]
    return [item for _, item in sorted(keyed, key=lambda pair: pair[0])]


def summed(values: Tensor) -> Tensor:
    """The element-wise sum of `values` over all processes, without a gradient.

    Args:
        values: numbers (not booleans) of any shape, the same shape and dtype on every process.

    Returns:
        a tensor with the shape, dtype and device of `values`; `values` itself without a process group.
    """
    if not _connected():
        return values
    return _reduced(values, torch.distributed.ReduceOp.SUM)


def means(values: dict[str, Tensor]) -> dict[str, float]:
    """The mean of each tensor's entries over all processes, without NaN; a name without entries is left out.

    Args:
        values: tensors of any size by name. A process may lack a name that others have.
    """
    parts = gathered(
        {name: (float(entries.double().nansum()), int((~entries.isnan()).sum())) for name, entries in values.items()}
    )
    names = dict.fromkeys(name for part in parts for name in part)
    sums = {
        name: [sum(column) for column in zip(*(part[name] for part in parts if name in part), strict=True)]
        for name in names
    }
    return {name: total / count for name, (total, count) in sums.items() if count}


def maximum(value: float) -> float:
    """The largest `value` of all processes; NaN on every process if it is NaN on one."""
    if not _connected():
        return value
    # Libraries differ in which of a number and NaN is larger, so NaN is reported separately.
    is_nan = math.isnan(value)
    pair = torch.tensor([-math.inf if is_nan else value, float(is_nan)], dtype=torch.float64)
    largest, any_nan = _reduced(pair, torch.distributed.ReduceOp.MAX).tolist()
    return math.nan if any_nan else float(largest)


def _reduced(values: Tensor, operation: Any) -> Tensor:
    """A copy of the values that is reduced over all processes, on their device."""
    copied = values.detach().to(_meeting_device(values), copy=True).contiguous()
    torch.distributed.all_reduce(copied, operation)
    return copied.to(values.device)


def _meeting_device(values: Tensor) -> torch.device:
    """The device on which tensors are reduced: the accelerator for NCCL, which takes no others, else their own."""
    if torch.distributed.get_backend() == torch.distributed.Backend.NCCL and not values.is_cuda:
        return torch.device("cuda", torch.cuda.current_device())
    return values.device
