"""What the processes of a run tell each other as plain Python objects."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def alone() -> Iterator[None]:
    """For a training within one process of a run, while the others wait: libraries inside see no process group, so none of them asks for an answer that will not come."""
    real = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = real


def gathered(item: Any) -> list[Any]:
    """The item of every process, in the order of their ranks; of this one alone if there are no others."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [item]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, item)
    return found
