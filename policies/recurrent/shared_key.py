"""Sliding-window attention with one key head for all heads (SW-SKA), for a state of constant size."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from policies.recurrent.state import Tokens, tail


def output_layer(inputs: int, outputs: int) -> nn.Linear:
    """A layer whose output is added to the stream, which its first weights take into account."""
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.adds_to_stream = True  # type: ignore[assignment]
    return layer


class SharedKeyAttention(nn.Module):
    """Sliding-window attention whose query and value heads share one key head (SW-SKA), with rotary positions.

    It keeps (1 + heads) x head size numbers per token of the window, instead of 2 x heads x head size.

    Args:
        width: of the model. heads: number of query and value heads.
        window: tokens that a token sees, itself included.
        theta: base of the rotary angles.
    """

    def __init__(self, width: int, heads: int, window: int, theta: float) -> None:
        super().__init__()
        self.heads, self.size, self.window, self.theta = heads, width // heads, window, theta
        self.q_proj, self.v_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, self.size, bias=False)
        self.o_proj = output_layer(width, width)

    def initial_state(self, rows: int, like: Tensor) -> dict[str, Tensor]:
        return {
            "keys": like.new_zeros(rows, self.window - 1, self.size),
            "values": like.new_zeros(rows, self.window - 1, self.heads * self.size),
        }

    def forward(
        self, hidden: Float[Tensor, "rows time width"], tokens: Tokens, state: dict[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "rows time width"], dict[str, Tensor]]:
        query, value = self.q_proj(hidden).unflatten(-1, (self.heads, self.size)).transpose(1, 2), self.v_proj(hidden)
        cos, sin = self._rotary(tokens.positions(hidden.shape[1]))
        query = _rotated(query, cos[:, None], sin[:, None]).to(value.dtype)
        key = _rotated(self.k_proj(hidden), cos, sin).to(value.dtype)
        keys, values = key, value
        past_keys = past_values = None
        if state is not None:
            past_keys, past_values = state["keys"].to(key.dtype), state["values"].to(value.dtype)
            keys, values = torch.cat([past_keys, key], 1), torch.cat([past_values, value], 1)
        values_by_head = values.unflatten(-1, (self.heads, self.size)).transpose(1, 2)
        attended = self._attended(query, keys, values_by_head, None if state is None else tokens.seen)
        after = {
            "keys": tail(past_keys, key, tokens.lengths, self.window - 1),
            "values": tail(past_values, value, tokens.lengths, self.window - 1),
        }
        return self.o_proj(attended.transpose(1, 2).flatten(2)), after

    def _attended(
        self,
        query: Float[Tensor, "rows heads time size"],
        keys: Float[Tensor, "rows entries size"],
        values: Float[Tensor, "rows heads entries size"],
        seen: Int[Tensor, "rows"] | None,
    ) -> Float[Tensor, "rows heads time size"]:
        """Attention block by block, so that the cost grows with time x window, not with the square of the time."""
        time, past, block = query.shape[2], keys.shape[1] - query.shape[2], max(self.window, 64)
        parts = []
        for start in range(0, time, block):
            end = min(start + block, time)
            first, last = max(0, past + start - self.window + 1), past + end
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:end],
                    keys[:, None, first:last].expand(-1, self.heads, -1, -1),
                    values[:, :, first:last],
                    attn_mask=self._mask(past + start, past + end, first, last, past, seen, query.device),
                )
            )
        return torch.cat(parts, 2)

    def _mask(
        self,
        start: int,
        end: int,
        first: int,
        last: int,
        past: int,
        seen: Int[Tensor, "rows"] | None,
        device: torch.device,
    ) -> Bool[Tensor, "rows one queries entries"]:
        """True where the queries at entries `start` to `end` may attend to the entries `first` to `last`.

        Args:
            past: number of entries before the first query's; those before a row's beginning are empty.
        """
        queries, entries = torch.arange(start, end, device=device)[:, None], torch.arange(first, last, device=device)
        mask = ((entries <= queries) & (queries - entries < self.window))[None, None]
        return mask if seen is None else mask & (entries >= past - seen[:, None])[:, None, None]

    def _rotary(self, positions: Int[Tensor, "rows time"]) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (rows, time, size)."""
        exponents = torch.arange(0, self.size, 2, device=positions.device, dtype=torch.float32) / self.size
        angles = positions[..., None].float() * self.theta**-exponents
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.float().chunk(2, -1)
    return states.float() * cos + torch.cat([-second, first], -1) * sin
