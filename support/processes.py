"""What the processes of a run tell each other as plain Python objects."""

from typing import Any

import torch


def gathered(item: Any) -> list[Any]:
    """The item of every process, in the order of their ranks; of this one alone if there are no others."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [item]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, item)
    return found
