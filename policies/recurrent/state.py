"""The state that a recurrent model carries from token to token, and the arrangement of its input."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class RecurrentState:
    """The state of some rows after their tokens so far; its size does not depend on their number.

    It is the `past_key_values` of recurrent models in transformers' `generate`.

    Fields:
        layers: tensors by name, per layer; the first dimension of each is the rows.
        seen: (rows,), number of tokens so far.
    """

    layers: list[dict[str, Tensor]]
    seen: Int[Tensor, "rows"]

    is_compileable = False  # asked for by `generate`

    def __len__(self) -> int:
        return len(self.seen)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(part.nbytes for layer in self.layers for part in layer.values()) + self.seen.nbytes

    def rows(self, index: Any) -> "RecurrentState":
        """The state of the rows at `index`; a slice gives views."""
        return RecurrentState(
            [{name: part[index] for name, part in layer.items()} for layer in self.layers], self.seen[index]
        )

    def write(self, index: Any, state: "RecurrentState") -> None:
        """Put `state` in the place of the rows at `index`."""
        for target, source in zip(self.layers, state.layers, strict=True):
            for name, part in target.items():
                part[index] = source[name].to(part.dtype)
        self.seen[index] = state.seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far of the longest row."""
        return int(self.seen.max())

    def batch_select_indices(self, indices: Int[Tensor, "selected"]) -> None:
        """Keep these rows, in this order."""
        selected = self.rows(indices)
        self.layers, self.seen = selected.layers, selected.seen

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.batch_select_indices(torch.arange(len(self), device=self.seen.device).repeat_interleave(repeats))


@dataclass
class Tokens:
    """The places of a layer's input.

    Fields:
        lengths: (rows,), number of tokens; what follows is padding.
        valid: (rows, time), False on padding; None without padding.
        seen: (rows,), number of tokens before these; None at the beginning of sequences.
    """

    lengths: Int[Tensor, "rows"]
    valid: Bool[Tensor, "rows time"] | None
    seen: Int[Tensor, "rows"] | None

    def positions(self, time: int) -> Int[Tensor, "rows time"]:
        """Position of every token in its sequence; one row if it is the same for all."""
        steps = torch.arange(time, device=self.lengths.device)[None]
        return steps if self.seen is None else self.seen[:, None] + steps


def tail(
    past: Float[Tensor, "rows size width"] | None,
    new: Float[Tensor, "rows time width"],
    lengths: Int[Tensor, "rows"],
    size: int,
) -> Float[Tensor, "rows size width"]:
    """The last `size` tokens of every row, zeros before its beginning."""
    if past is None:
        past = new.new_zeros(len(new), size, new.shape[2])
    index = lengths[:, None] + torch.arange(size, device=new.device)
    return torch.cat([past, new], 1).gather(1, index[..., None].expand(-1, -1, new.shape[2]))


class Arrangement:
    """The rows that a recurrent model computes: tokens of one sequence, without gaps, padding behind them.

    A state runs through everything that it meets, so that padding before or between tokens would change it, and so
    would the end of another text in the same row. Tokens are therefore moved to rows of their own and the outputs back.

    Args:
        mask: (rows, time), False on padding, which may be anywhere.
        position_ids: 0 where a sequence begins; None if a row is one sequence.
    """

    def __init__(self, mask: Bool[Tensor, "rows time"], position_ids: Int[Tensor, "rows time"] | None = None) -> None:
        self.shape = mask.shape
        self.places = mask.flatten().nonzero()[:, 0]
        row = self.places // mask.shape[1]
        starts = torch.zeros_like(mask) if position_ids is None else mask & (position_ids.expand(mask.shape) == 0)
        #: whether a sequence begins behind another one in its row
        self.restarts = bool((starts & (mask.cumsum(1) > 1)).any())
        if self.restarts:
            first_number = (mask.shape[1] + 1) * torch.arange(len(mask), device=mask.device)[:, None]
            sequence = (first_number + starts.cumsum(1)).flatten()[self.places]
            _, row, self.lengths = sequence.unique_consecutive(return_inverse=True, return_counts=True)
        else:
            self.lengths = mask.sum(1)
        first = self.lengths.cumsum(0) - self.lengths
        self.row, self.column = row, torch.arange(len(row), device=mask.device) - first[row]
        self.width = int(self.lengths.max())

    def rows(self, values: Tensor) -> Tensor:
        """(rows, time, ...) as it came -> (sequences, longest, ...), zeros behind each sequence."""
        arranged = values.new_zeros(len(self.lengths), self.width, *values.shape[2:])
        arranged[self.row, self.column] = values.flatten(0, 1)[self.places]
        return arranged

    def back(self, states: Float[Tensor, "sequences longest width"]) -> Float[Tensor, "rows time width"]:
        """The inverse of `rows`; zeros on padding."""
        flat = states.new_zeros(self.shape.numel(), states.shape[2])
        flat[self.places] = states[self.row, self.column]
        placed: Tensor = flat.unflatten(0, self.shape)
        return placed


def arrangement(
    mask: Bool[Tensor, "rows time"] | None, position_ids: Int[Tensor, "rows time"] | None, carried: bool
) -> Arrangement | None:
    """The arrangement of an input; None if it is in order already.

    Args:
        carried: whether a state goes on in the input's rows.

    Raises:
        ValueError: a sequence begins within a row that goes on from a state.
    """
    if mask is None:
        if position_ids is None:
            return None
        mask = torch.ones_like(position_ids, dtype=torch.bool)
    arranged = Arrangement(mask, position_ids)
    if arranged.restarts and carried:
        raise ValueError(
            "the positions of a row begin anew behind a state that it goes on from; give each sequence a row of its "
            "own."
        )
    return arranged if arranged.restarts or not bool(mask.all()) else None
