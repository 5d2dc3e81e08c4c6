"""Caches of keys and values, and attention of many rows to prompts that are stored once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Cache:
    """Keys and values of some rows in one tensor, which grows by doubling in time.

    Fields:
        states: (layers, 2, rows, key heads, time, size), keys at 0, values at 1.
    """

    def __init__(self, layers: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.states = torch.zeros(layers, 2, 0, key_heads, 0, size, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self.states.nbytes

    def reserve(self, rows: int, time: int) -> None:
        """Make room for this many rows and tokens; rows beyond `rows` are lost when the tensor is allocated anew."""
        layers, two, old_rows, heads, old_time, size = self.states.shape
        if rows > old_rows or time > old_time:
            time = old_time if time <= old_time else max(time, min(2 * old_time, 2 * time))
            grown = self.states.new_zeros(layers, two, rows, heads, time, size)
            kept_rows = min(rows, old_rows)
            grown[:, :, :kept_rows, :, :old_time] = self.states[:, :, :kept_rows]
            self.states = grown

    def move(self, source: Tensor, target: Tensor, time: int) -> None:
        """Copy the first `time` tokens of the source rows over the target rows."""
        self.states[:, :, target, :, :time] = self.states[:, :, source, :, :time]

    def start(self, rows: slice, prompts: "PromptCache", slot: Int[Tensor, "rows"]) -> None:
        """Let these rows begin with copies of the prompts in these slots."""
        self.states[:, :, rows, :, : prompts.width] = prompts.states[:, :, slot]

    def take(self, row: int, time: int) -> Tensor:
        """A copy of the first `time` tokens of a row."""
        return self.states[:, :, row, :, :time].clone()

    def put(self, row: int, taken: Tensor) -> None:
        """Put what `take` gave into a row."""
        self.states[:, :, row, :, : taken.shape[3]] = taken


class PromptCache(Cache):
    """Keys and values of prompts, padded on the right; each prompt has a slot (a row of the tensor).

    Fields:
        lengths: (slots,), tokens of each prompt.
        hidden: (slots, width), the last token's output before the output layer.
    """

    lengths: Int[Tensor, "slots"]
    hidden: Float[Tensor, "slots width"]

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.states.shape[2]

    @property
    def width(self) -> int:
        """Number of tokens for which there is room in a slot."""
        return self.states.shape[4]

    def keep(self, kept: Int[Tensor, "kept"]) -> None:
        """Keep these slots only, in this order."""
        self.states, self.lengths, self.hidden = self.states[:, :, kept], self.lengths[kept], self.hidden[kept]


class SharedPrompts:
    """Attention of rows to their prompts and to their own tokens, which reads each prompt once for all its rows.

    Args:
        cache: the prompts. slot: (rows,), the slot of each row's prompt.
    """

    def __init__(self, cache: PromptCache, slot: Int[Tensor, "rows"]) -> None:
        self.cache, slots = cache, len(cache.lengths)
        order = slot.argsort(stable=True)
        counts = torch.bincount(slot, minlength=slots)
        rank = torch.empty_like(slot)
        rank[order] = torch.arange(len(slot), device=slot.device) - (counts.cumsum(0) - counts)[slot[order]]
        rows_per_slot = int(counts.max())
        # A table of slots x rows_per_slot: `place` is each row's entry, `row` the row of each entry (0 if it is empty).
        self.place = slot * rows_per_slot + rank
        self.row = torch.zeros(slots * rows_per_slot, dtype=torch.long, device=slot.device)
        self.row[self.place] = torch.arange(len(slot), device=slot.device)
        width = cache.states.shape[4]
        self.seen = (torch.arange(width, device=slot.device) < cache.lengths[slot, None])[:, None, None]

    def attend(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Float[Tensor, "rows key_heads repeats size"]:
        """Attention output of one layer.

        Args:
            query: (rows, key heads, repeats, size), scaled.
            keys, values: (rows, key heads, time, size), of the rows' own tokens. bias: added to the scores of these.
        """
        repeats, width = query.shape[2], self.seen.shape[3]
        to_prompt = self._by_row(self._by_prompt(query) @ self.cache.states[layer, 0].transpose(2, 3), repeats)
        scores = torch.cat([to_prompt.masked_fill_(~self.seen, -torch.inf), query @ keys.transpose(2, 3) + bias], -1)
        weights = scores.float().softmax(-1).to(query.dtype)
        from_prompt = self._by_row(self._by_prompt(weights[..., :width]) @ self.cache.states[layer, 1], repeats)
        return from_prompt + weights[..., width:] @ values

    def _by_prompt(
        self, rowwise: Float[Tensor, "rows key_heads repeats n"]
    ) -> Float[Tensor, "slots key_heads several n"]:
        table: Tensor = rowwise[self.row].unflatten(0, (len(self.cache.lengths), -1))
        return table.transpose(1, 2).flatten(2, 3)

    def _by_row(
        self, table: Float[Tensor, "slots key_heads several n"], repeats: int
    ) -> Float[Tensor, "rows key_heads repeats n"]:
        rowwise: Tensor = table.unflatten(2, (-1, repeats))
        return rowwise.transpose(1, 2).flatten(0, 1)[self.place]
