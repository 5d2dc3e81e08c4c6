"""Conversion of a reward's return value to one number per completion."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from support.errors import ConfigError

#: largest size of a score; the squares of a rollout's scores must stay finite in float32
LARGEST = 1e15


def as_scores(returned: Any, rows: int, where: str, none_abstains: bool = False) -> Float[Tensor, "rows"]:
    """The scores as a tensor.

    Args:
        returned: a list, tuple, array or tensor of numbers.
        rows: number of completions that were scored.
        where: name of the reward, as the beginning of a sentence.
        none_abstains: whether None means "does not apply" (NaN).

    Raises:
        ConfigError: for anything but a list, a wrong number of entries, or entries that are not numbers.
    """
    if isinstance(returned, Tensor):
        if returned.dtype.is_complex:
            raise ConfigError(f"{where} returned complex numbers; it must return a real number for each completion.")
        values = returned.detach().to(torch.float32)
    elif isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__len__"):
        raise ConfigError(
            f"{where} returned {_shown(returned)}; it must return a list with a number"
            f"{' (or None)' if none_abstains else ''} for each completion."
        )
    else:
        values = torch.tensor([_number(entry, number, where, none_abstains) for number, entry in enumerate(returned)])
    if values.shape != (rows,):
        raise ConfigError(
            f"{where} returned {tuple(values.shape)} numbers for {rows} completions; it must return one for each, in "
            "their order."
        )
    return values


def _number(entry: Any, place: int, where: str, none_abstains: bool) -> float:
    if entry is None and none_abstains:
        return math.nan
    whole = isinstance(entry, Tensor) and entry.numel() != 1 or (getattr(entry, "shape", ()) or (1,)) != (1,)
    if not whole and not isinstance(entry, (str, bytes, Mapping)):
        try:
            return float(entry)
        except (TypeError, ValueError, OverflowError):
            pass
    raise ConfigError(
        f"{where} returned {_shown(entry)} for completion {place}; it must return one number"
        f"{' (or None)' if none_abstains else ''} for each completion, so extract the number from that value."
    )


def _shown(value: Any) -> str:
    """A short text of a value with its type."""
    text = repr(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}" + (
        "" if value is None else f" ({text[:60]}{'...' * (len(text) > 60)})"
    )
