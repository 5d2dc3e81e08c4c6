"""Continuous batching: rows that end make room for rows that wait.

A prompt is computed once for its whole group. Each row draws from its own stream of random numbers, so its completion
does not depend on the rows beside it.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies import Policy
from rollouts.decoder import Decoder
from rollouts.engine import Endings, Prompts, draw, warpers
from rollouts.kv_cache import SharedPrompts
from rollouts.recurrent_decoder import RecurrentDecoder
from rollouts.sampling import SamplingParams

PREFILL_TOKENS = 4096  # maximum number of prompt tokens computed at once: bounds the memory of the widest layer
SHARE_FROM = 128  # mean tokens per prompt from which reading it once per group is faster than a copy for every row
LOGITS = 2**23  # maximum number of logits held at once: 32 MiB in float32


class ContinuousBatching:
    """The generation of one batch: which rows are live, their caches, and the tokens so far.

    Fields:
        tokens, logprobs: (all rows, max_new_tokens), the result. lengths: (all rows,), tokens of each completion.
        reasons: (all rows,), why each completion ended, as an index in rollouts.engine.REASONS.
        waiting: number of rows that have not started; the last ones of all rows.
        row, steps, slot: (live,), in the order of the completion cache: index among all rows, tokens so far, slot of
            the row's prompt.
        offset: (live,), number of prompt tokens before the row's own in its cache: all if it has a copy, 0 if it
            shares.
        hidden: (live, width), outputs from which the next tokens are drawn.
        completion_cache, prompt_cache: keys and values of the live rows and of their prompts.
        slots, unfinished: by prompt, its slot and the number of its rows that have not ended. free: slots without a
            prompt.
        sharing: read a prompt once for all its rows, instead of from a copy in every row's cache.
    """

    def __init__(
        self,
        policy: Policy,
        decoder: Decoder | RecurrentDecoder,
        prompts: Prompts,
        group_size: int,
        sampling: SamplingParams,
        forced: Int[Tensor, "rows forced_time"],
        uniform: Float[Tensor, "rows time"],
    ) -> None:
        device, rows = policy.device, len(prompts) * group_size
        self.decoder, self.prompts, self.group_size, self.sampling = decoder, prompts, group_size, sampling
        self.forced, self.warpers, self.endings = forced, warpers(sampling), Endings(policy, sampling.stop, forced)
        self.uniform = uniform
        self.tokens = torch.full(self.uniform.shape, policy.pad_token_id, device=device)
        self.logprobs = torch.zeros_like(self.uniform)
        self.lengths, self.reasons = (torch.zeros(rows, dtype=torch.long, device=device) for _ in range(2))
        self.row, self.steps, self.slot, self.offset = (
            torch.zeros(0, dtype=torch.long, device=device) for _ in range(4)
        )
        self.hidden = decoder.embedding.new_zeros(0, decoder.embedding.shape[1])
        self.completion_cache: Any = decoder.cache()  # of the decoder's kind, as the next one
        self.prompt_cache: Any = decoder.prompt_cache()
        self.prompt_cache.lengths, self.prompt_cache.hidden = self.slot, self.hidden
        self.slots: dict[int, int] = {}
        self.unfinished: dict[int, int] = {}
        self.free: list[int] = []
        self.waiting = rows
        long_prompts = sum(map(len, prompts)) >= SHARE_FROM * len(prompts)
        self.sharing = decoder.reads_prompts and group_size > 1 and long_prompts

    def generate(self, rows_at_once: int) -> None:
        """Generate all rows, at most `rows_at_once` side by side."""
        shared: SharedPrompts | None = None
        while self._pending():
            if self._enter(rows_at_once):
                shared = None
            if not len(self.row):
                continue
            drawn = self._draw()
            live_tokens = self._finish(drawn)
            if len(live_tokens) < len(drawn):
                shared = None
            if not len(live_tokens):
                self.hidden = self.hidden[:0]
                continue
            places = self.offset + self.steps
            last_place = int(places.max())
            self.completion_cache.reserve(len(live_tokens), last_place + 1)
            if self.sharing and shared is None:
                shared = SharedPrompts(self.prompt_cache, self.slot)
            positions = self.prompt_cache.lengths[self.slot] + self.steps
            self.hidden = self.decoder.step(live_tokens, positions, places, last_place, self.completion_cache, shared)
            self.steps = self.steps + 1

    def _pending(self) -> bool:
        """Whether anything is left to generate."""
        return bool(self.waiting or len(self.row))

    def _enter(self, rows_at_once: int) -> bool:
        """Let rows join the live ones, up to this many in all. Returns whether any did."""
        if not self.waiting or len(self.row) >= rows_at_once:
            return False
        self._admit(min(rows_at_once - len(self.row), self.waiting))
        return True

    def _admit(self, count: int) -> None:
        """Start the next `count` waiting rows, behind the live ones, and compute the prompts that have no slot yet."""
        first = len(self.tokens) - self.waiting
        self.waiting -= count
        owners = [row // self.group_size for row in range(first, first + count)]
        new_prompts = [prompt for prompt in dict.fromkeys(owners) if prompt not in self.slots]
        if len(new_prompts) > len(self.free):
            self._more_slots(len(new_prompts) - len(self.free))
        longest = max((len(self.prompts[prompt]) for prompt in new_prompts), default=0)
        self.prompt_cache.reserve(len(self.prompt_cache.lengths), longest)
        for prompt in new_prompts:
            self.slots[prompt], self.unfinished[prompt] = self.free.pop(), self.group_size
        self._prefill(new_prompts)
        device = self.row.device
        slot = torch.tensor([self.slots[prompt] for prompt in owners], device=device)
        self.row = torch.cat([self.row, torch.arange(first, first + count, device=device)])
        self.steps = torch.cat([self.steps, torch.zeros_like(slot)])
        self.slot = torch.cat([self.slot, slot])
        self.hidden = torch.cat([self.hidden, self.prompt_cache.hidden[slot]])
        width = 0 if self.sharing else self.prompt_cache.width
        self.completion_cache.reserve(len(self.row), width + 1)
        if self.sharing:
            self.offset = torch.cat([self.offset, torch.zeros_like(slot)])
        else:
            self.offset = torch.cat([self.offset, self.prompt_cache.lengths[slot]])
            self.completion_cache.start(slice(len(self.row) - count, len(self.row)), self.prompt_cache, slot)

    def _prefill(self, prompts: list[int]) -> None:
        """Compute the prompts with these indices into their slots, at most PREFILL_TOKENS tokens at once."""
        device = self.row.device
        while prompts:
            size = max(1, PREFILL_TOKENS // max(len(self.prompts[prompt]) for prompt in prompts))
            part, prompts = prompts[:size], prompts[size:]
            texts = [self.prompts[prompt] for prompt in part]
            lengths = torch.tensor([len(text) for text in texts], device=device)
            longest = int(lengths.max())
            ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)
            slots = torch.tensor([self.slots[prompt] for prompt in part], device=device)
            self.decoder.prefill(ids, lengths, self.prompt_cache, slots)

    def _more_slots(self, count: int) -> None:
        cache = self.prompt_cache
        old_slots = len(cache.lengths)
        cache.reserve(old_slots + count, cache.width)
        slots = cache.slots
        self.free += range(old_slots, slots)
        cache.lengths = torch.cat([cache.lengths, cache.lengths.new_ones(slots - old_slots)])
        cache.hidden = torch.cat([cache.hidden, cache.hidden.new_zeros(slots - old_slots, self.hidden.shape[1])])

    def _draw(self) -> Int[Tensor, "live"]:
        """Draw the next token of every live row, and record it with its log-prob."""
        size = max(1, LOGITS // self.decoder.vocabulary)
        parts = [self._sample(slice(start, start + size)) for start in range(0, len(self.row), size)]
        drawn, logprobs = (torch.cat(part) for part in zip(*parts, strict=True))
        if self.forced.shape[1]:
            forced = self.forced[self.row, self.steps.clamp(max=self.forced.shape[1] - 1)]
            drawn = torch.where((forced >= 0) & (self.steps < self.forced.shape[1]), forced, drawn)
        self.tokens[self.row, self.steps], self.logprobs[self.row, self.steps] = drawn, logprobs
        return drawn

    def _sample(self, part: slice) -> tuple[Int[Tensor, "part"], Float[Tensor, "part"]]:
        logits: Any = self.warpers(None, self.decoder.logits(self.hidden[part]).float())
        return draw(logits, self.uniform[self.row[part], self.steps[part]], self.sampling.temperature == 0)

    def _finish(self, drawn: Int[Tensor, "live"]) -> Int[Tensor, "still_live"]:
        """Remove rows that ended, and move the last live rows into their places. Returns the live rows' tokens."""
        reasons = self._reasons()
        done = (reasons > 0) | (self.steps + 1 == self._limits())
        finished = done.nonzero()[:, 0]
        if not len(finished):
            return drawn
        rows = self.row[finished]
        self.lengths[rows] = self.steps[finished] + 1
        self.reasons[rows] = reasons[finished]
        self._leave(finished)
        live = len(drawn) - len(finished)
        holes, movers = finished[finished < live], live + (~done[live:]).nonzero()[:, 0]
        order = torch.arange(live, device=drawn.device)
        order[holes] = movers
        if len(holes):
            self.completion_cache.move(movers, holes, int((self.offset + self.steps)[movers].max()))
        self.row, self.steps, self.slot, self.offset = (
            x[order] for x in (self.row, self.steps, self.slot, self.offset)
        )
        if 2 * len(self.slots) < len(self.prompt_cache.lengths):
            self._fewer_slots()
        return drawn[order]

    def _reasons(self) -> Int[Tensor, "live"]:
        """Index in REASONS of why the token just drawn ends each live row."""
        return self.endings(self.tokens, self.steps + 1, self.row)

    def _limits(self) -> int | Int[Tensor, "live"]:
        """Number of tokens at which each live row ends at the latest."""
        return self.sampling.max_new_tokens

    def _leave(self, finished: Int[Tensor, "finished"]) -> None:
        """Called with the live rows that ended, before others take their places."""
        self._release(self.row[finished].tolist())

    def _release(self, rows: list[int]) -> None:
        """Free the slots of prompts whose last row has ended."""
        for row in rows:
            prompt = row // self.group_size
            self.unfinished[prompt] -= 1
            if not self.unfinished[prompt]:
                self.free.append(self.slots.pop(prompt))

    def _fewer_slots(self) -> None:
        """Keep only the slots of prompts that are still needed, since every slot costs time in every step."""
        kept = torch.tensor(list(self.slots.values()), dtype=torch.long, device=self.slot.device)
        place = torch.zeros(len(self.prompt_cache.lengths), dtype=torch.long, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        self.prompt_cache.keep(kept)
        self.slot = place[self.slot]
        self.slots = {prompt: i for i, prompt in enumerate(self.slots)}
        self.free = []
