"""The embedded engine's decoder for recurrent models (policies/recurrent): a state of constant size per row.

It has the methods of `rollouts.decoder.Decoder`, so that continuous batching and conversations work alike. Two things
differ: nothing grows with the tokens of a row, and a row begins with a copy of its prompt's state instead of reading
the prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies.modes import evaluation_mode
from policies.recurrent import RecurrentModel, RecurrentState


class StateCache:
    """The states of some rows, with the interface of `rollouts.kv_cache.Cache`.

    Args:
        model: makes initial states.
    """

    def __init__(self, model: RecurrentModel) -> None:
        self.model, self.state = model, model.initial_state(0)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return self.state.nbytes

    def reserve(self, rows: int, time: int) -> None:
        """Make room for this many rows; they need none for tokens."""
        if rows > len(self.state):
            grown = self.model.initial_state(rows)
            grown.write(slice(0, len(self.state)), self.state)
            self.state = grown

    def move(self, source: Tensor, target: Tensor, time: int) -> None:
        """Copy the states of the source rows over the target rows."""
        self.state.write(target, self.state.rows(source))

    def start(self, rows: slice, prompts: "PromptStates", slot: Int[Tensor, "rows"]) -> None:
        """Let these rows begin with copies of the states behind the prompts in these slots."""
        self.state.write(rows, prompts.state.rows(slot))

    def take(self, row: int, time: int) -> RecurrentState:
        """A copy of a row's state."""
        return self.state.rows(torch.tensor([row], device=self.state.seen.device))

    def put(self, row: int, taken: RecurrentState) -> None:
        """Put what `take` gave into a row."""
        self.state.write(slice(row, row + 1), taken)


class PromptStates(StateCache):
    """The states behind prompts, with the interface of `rollouts.kv_cache.PromptCache`."""

    lengths: Int[Tensor, "slots"]
    hidden: Float[Tensor, "slots width"]
    width = 0  # no tokens are kept

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.state)

    def keep(self, kept: Int[Tensor, "kept"]) -> None:
        """Keep these slots only, in this order."""
        self.state, self.lengths, self.hidden = self.state.rows(kept), self.lengths[kept], self.hidden[kept]


class RecurrentDecoder:
    """Prefill and single decoding steps of one recurrent model, by the model's own forward on its own weights.

    Args:
        bare: a causal language model of transformers, which may hold adapters' layers.
        dtype: in which matrices are multiplied.

    Raises:
        ValueError: the model's body is not a RecurrentModel.
    """

    reads_prompts = False

    def __init__(self, bare: Any, dtype: torch.dtype) -> None:
        body = bare.get_decoder()
        if not isinstance(body, RecurrentModel):
            raise ValueError(f"{type(bare).__name__} is not a recurrent model of the project")
        self.bare, self.body, self.dtype = bare, body, dtype
        self.embedding: Tensor = bare.get_input_embeddings().weight
        self.vocabulary: int = bare.get_output_embeddings().weight.shape[0]

    def cache(self) -> StateCache:
        """An empty cache for this model."""
        return StateCache(self.body)

    def prompt_cache(self) -> PromptStates:
        """An empty cache for prompts."""
        return PromptStates(self.body)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The engine turns autocast off for decoders that cast weights themselves; this one's model does not."""
        kind = self.embedding.device.type
        with (
            torch.no_grad(),
            evaluation_mode(self.bare),
            torch.autocast(kind, self.dtype, enabled=self.dtype != self.embedding.dtype),
        ):
            yield

    def _advance(
        self, ids: Int[Tensor, "rows time"], counts: Tensor | None, state: RecurrentState | None
    ) -> tuple[Float[Tensor, "rows width"], RecurrentState]:
        """(output at the last token, state behind it).

        Args:
            ids: padded on the right. counts: number of tokens of each row; all if None.
        """
        mask = None if counts is None else torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
        with self._computing():
            outputs = self.body(ids, attention_mask=mask, past_key_values=state, use_cache=True)
        last = -1 if counts is None else counts - 1
        hidden: Tensor = outputs.last_hidden_state[torch.arange(len(ids), device=ids.device), last]
        return hidden.to(self.embedding.dtype), outputs.past_key_values

    def prefill(
        self, ids: Int[Tensor, "prompts time"], lengths: Int[Tensor, "prompts"], cache: PromptStates, slots: Tensor
    ) -> None:
        """Compute prompts, padded on the right, into slots of the cache, which must have room for them."""
        hidden, state = self._advance(ids, lengths, None)
        cache.state.write(slots, state)
        cache.lengths[slots], cache.hidden[slots] = lengths, hidden

    def logits(self, hidden: Float[Tensor, "rows width"]) -> Float[Tensor, "rows vocabulary"]:
        with self._computing():
            logits: Tensor = self.bare.get_output_embeddings()(hidden)
        return logits

    def step(
        self,
        tokens: Int[Tensor, "rows"],
        positions: Int[Tensor, "rows"],
        places: Int[Tensor, "rows"],
        last_place: int,
        cache: StateCache,
        shared: object = None,
    ) -> Float[Tensor, "rows width"]:
        """Outputs, before the output layer, of one more token of the cache's first rows, whose states advance.

        The state knows the positions, so that only `tokens` and `cache` count.
        """
        rows = slice(0, len(tokens))
        hidden, state = self._advance(tokens[:, None], None, cache.state.rows(rows))
        cache.state.write(rows, state)
        return hidden

    def extend(
        self,
        tokens: Int[Tensor, "rows time"],
        counts: Int[Tensor, "rows"],
        position: Int[Tensor, "rows"],
        place: Int[Tensor, "rows"],
        index: Int[Tensor, "rows"],
        cache: StateCache,
        prompts: object = None,
    ) -> Float[Tensor, "rows width"]:
        """Outputs, before the output layer, of the last of several more tokens of the rows at `index`.

        Args:
            tokens: padded on the right. counts: number of tokens of each row.
        """
        hidden, state = self._advance(tokens, counts, cache.state.rows(index))
        cache.state.write(index, state)
        return hidden
