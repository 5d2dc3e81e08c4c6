"""Continuous batching of conversations: a row whose turn has ended leaves, and comes back with the environment's reply.

Its keys and values are kept meanwhile, so that only the reply's tokens are computed, and rows of different turns are
decoded side by side. A row comes back at a decoding step that does not depend on the clock (`Environment.overlap`).
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from policies import Policy
from rollouts.continuous_batching import PREFILL_TOKENS, ContinuousBatching
from rollouts.conversations import Conversations
from rollouts.engine import REASONS, Endings
from rollouts.environment import Reply


@dataclass
class _Parked:
    """A row between two turns.

    Fields:
        states: its keys and values, or its recurrent state. offset: number of prompt tokens among them.
        due: the decoding step at which it comes back.
    """

    row: int
    states: Any
    offset: int
    due: int
    reply: "Future[Reply]"


class ConversationBatching(ContinuousBatching):
    """The generation of one batch of conversations.

    Fields:
        parked: rows between two turns, in the order in which they left.
        clock: number of decoding steps so far.
    """

    def __init__(self, policy: Policy, conversations: Conversations, *arguments: Any) -> None:
        super().__init__(policy, *arguments)
        self.conversations, self.environment = conversations, conversations.environment
        self.tokens, self.logprobs = conversations.tokens, conversations.logprobs
        self.endings = Endings(policy, conversations.stop, self.forced)
        self.parked: list[_Parked] = []
        self.clock = 0

    def _pending(self) -> bool:
        return super()._pending() or bool(self.parked)

    def _enter(self, rows_at_once: int) -> bool:
        # Parked rows keep their memory, so that they count.
        entered = super()._enter(rows_at_once - len(self.parked))
        self.clock += 1
        if not len(self.row) and self.parked:
            self.clock = max(self.clock, self.parked[0].due)
        due = [parked for parked in self.parked if parked.due <= self.clock]
        self.parked = self.parked[len(due) :]
        replies = [(parked, self.conversations.settle(parked.row, parked.reply)) for parked in due]
        self._release([parked.row for parked, ids in replies if ids is None])
        going_on = [(parked, ids) for parked, ids in replies if ids is not None]
        if going_on:
            self._go_on(going_on)
        return entered or bool(going_on)

    def _limits(self) -> Int[Tensor, "live"]:
        return torch.tensor(self.conversations.limit, device=self.row.device)[self.row]

    def _reasons(self) -> Int[Tensor, "live"]:
        start, stops = (
            torch.tensor(values, device=self.row.device)[self.row]
            for values in (self.conversations.start, self.conversations.stops)
        )
        return self.endings(self.tokens, self.steps + 1, self.row, start, stops)

    def _leave(self, finished: Int[Tensor, "finished"]) -> None:
        due = self.clock + (self.environment.overlap if self.environment.waits else 0)
        for place in finished.tolist():
            row, steps, offset = int(self.row[place]), int(self.steps[place]), int(self.offset[place])
            states = self.completion_cache.take(place, offset + steps)
            reply = self.conversations.ask(row, steps + 1, REASONS[int(self.reasons[row])])
            self.parked.append(_Parked(row, states, offset, due, reply))

    def _go_on(self, replies: list[tuple[_Parked, list[int]]]) -> None:
        """Let rows join the live ones again, behind them, with their replies computed."""
        device, live = self.row.device, len(self.row)
        rows = torch.tensor([parked.row for parked, _ in replies], device=device)
        # The last token of a turn was drawn but not computed.
        counts = torch.tensor([len(ids) + 1 for _, ids in replies], device=device)
        steps = torch.tensor([self.conversations.start[parked.row] for parked, _ in replies], device=device)
        offset = torch.tensor([parked.offset for parked, _ in replies], device=device)
        slot = torch.tensor([self.slots[parked.row // self.group_size] for parked, _ in replies], device=device)
        longest = int(counts.max())
        first = steps - counts
        self.completion_cache.reserve(live + len(replies), int((offset + first).max()) + longest + 1)
        for place, (parked, _) in enumerate(replies, start=live):
            self.completion_cache.put(place, parked.states)
        tokens = self.tokens[
            rows[:, None], (first[:, None] + torch.arange(longest, device=device)).clamp(max=self.tokens.shape[1] - 1)
        ]
        index, hidden = torch.arange(live, live + len(replies), device=device), []
        position = self.prompt_cache.lengths[slot] + first
        for part in torch.arange(len(replies), device=device).split(max(1, PREFILL_TOKENS // longest)):
            prompts = (self.prompt_cache, slot[part]) if self.sharing else None
            hidden.append(
                self.decoder.extend(
                    tokens[part], counts[part], position[part], (offset + first)[part], index[part],
                    self.completion_cache, prompts,
                )
            )  # fmt: skip
        self.row, self.steps = torch.cat([self.row, rows]), torch.cat([self.steps, steps])
        self.slot, self.offset = torch.cat([self.slot, slot]), torch.cat([self.offset, offset])
        self.hidden = torch.cat([self.hidden, *hidden])
