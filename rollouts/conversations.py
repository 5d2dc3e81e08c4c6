"""The conversations of one call of an engine: where turns begin and end, and what the environment puts behind them.

Tokens, log-probs and masks are written while tokens are appended; nothing is decoded and encoded again. The embedded
engine asks and settles row by row (rollouts/conversation_batching.py); other engines advance all rows by one turn at a
time, from their cache (rollouts/carried_turns.py) or without (`by_turns`).
"""

import warnings
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policies import Policy, encode_reply
from policies.prompt_encoding import encode_content, render
from policies.tokenizer import check_known
from rollouts.batch import ends_open
from rollouts.environment import Conversation, Environment, Reply, Turn
from rollouts.sampling import SamplingParams
from rollouts.turns import FinishReason, Turns
from support.errors import ConfigError
from support.seeding import derive_seed
from support.threads import Threads, done

#: metrics of every environment: conversations that were cut at its max_turns, or for lack of tokens for its reply
CUT = ("turns_exhausted", "tokens_exhausted")
#: names in Turns.metrics and of every rollout
RESERVED = ("turns", "turns_truncated", "environment_fraction", "length", "truncated", "reward")
#: (tokens, log-probs, finish reason) of a turn
Sampled = tuple[list[int], list[float], FinishReason]


class Conversations:
    """All conversations of a batch; the index of a row is its index in the batch.

    Args:
        forced: first tokens of every completion, as from padded_forced; -1 where nothing is forced.
        uniform: the random numbers that decide every token.

    Fields:
        tokens, logprobs: (rows, max_new_tokens), the completions.
        forced: (rows, max_new_tokens), the tokens that are not the policy's choice, the environment's among them.
        start, limit: by row, index of the current turn's first token and of the first token behind its longest end.
        stops: by row, whether stop texts end the current turn.
        reasons: by row, why the completion ended.
        failed: whether the environment, not the engine, raised an error.
    """

    def __init__(
        self,
        policy: Policy,
        environment: Environment,
        rows: list[dict[str, Any]],
        group_size: int,
        sampling: SamplingParams,
        forced: Int[Tensor, "rows forced_time"],
        uniform: Float[Tensor, "rows time"],
    ) -> None:
        _check(environment)
        count, width = uniform.shape
        self.policy, self.environment, self.sampling = policy, environment, sampling
        self.stop = [*sampling.stop, *environment.stop]
        self.tokens = torch.full(uniform.shape, policy.pad_token_id, device=uniform.device)
        self.logprobs = torch.zeros_like(uniform)
        self.forced = torch.full_like(self.tokens, -1)
        self.forced[:, : forced.shape[1]] = forced[:, :width]
        self.number = torch.full_like(self.tokens, -1)
        self.start = [0] * count
        self.limit = [min(width, environment.max_turn_tokens or width)] * count
        self.stops = [True] * count
        self.lengths, self.message_start = [0] * count, [0] * count
        self.reasons: list[FinishReason] = ["length"] * count
        self.turn_reasons: list[list[FinishReason]] = [[] for _ in range(count)]
        self.rewards: list[list[float]] = [[] for _ in range(count)]
        self.values = {name: [0.0] * count for name in (*CUT, *environment.metrics)}
        seeds = (derive_seed(*(numbers.double() * 2**53).long().tolist()) for numbers in uniform[:, :2].cpu())
        opened = bool(policy.tokenizer.chat_template) and ends_open(render(policy.tokenizer, "?")[0])
        self.conversations = [
            Conversation(rows[row // group_size], seed, width, opened=opened)
            for row, seed in zip(range(count), seeds, strict=True)
        ]
        self.failed = False
        self._threads = Threads(environment.concurrent)

    def ask(self, row: int, end: int, reason: FinishReason) -> "Future[Reply]":
        """Tell the environment that the row's turn has ended before the token `end`, and ask what follows."""
        start, conversation = self.start[row], self.conversations[row]
        self.number[row, start:end] = len(conversation.turns)
        ids = self.tokens[row : row + 1, start:end]
        text = self.policy.decode(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        conversation.turns.append(Turn(text, end - start, reason))
        conversation.room = self.tokens.shape[1] - end
        self.turn_reasons[row].append(reason)
        self.lengths[row], self.reasons[row] = end, reason
        if self.environment.waits:
            return self._threads.submit(self.environment.reply, conversation)
        return done(self.environment.reply, conversation)

    def settle(self, row: int, future: "Future[Reply]") -> list[int] | None:
        """Append what the environment said to the row. Returns its token ids; None if the conversation has ended.

        Raises:
            ConfigError: the environment did not answer in time, or not with a valid reply.
        """
        reply = self._received(row, future)
        self.rewards[row].append(torch.nan if reply.reward is None else float(reply.reward))
        for name, value in reply.metrics.items():
            self.values[name][row] += float(value)
        if reply.ends:
            return None
        environment, end, room = self.environment, self.lengths[row], self.conversations[row].room
        ids = self._encoded(row, reply)
        if len(ids) >= room:  # no token would be left for the policy
            self._cut(row, "tokens_exhausted")
            return None
        if len(self.turn_reasons[row]) >= environment.max_turns:
            self._warn_endless()
            self._cut(row, "turns_exhausted")
            return None
        start = end + len(ids)
        new = torch.tensor(ids, dtype=torch.long, device=self.tokens.device)
        self.tokens[row, end:start] = self.forced[row, end:start] = new
        longest = reply.max_tokens or environment.max_turn_tokens
        width = self.tokens.shape[1]
        self.start[row], self.stops[row] = start, reply.stops
        if reply.messages is not None:
            self.message_start[row] = start
        self.limit[row] = width if longest is None else min(width, start + longest)
        return ids

    def advance(self, rows: list[int], turns: list[Sampled]) -> list[list[int] | None]:
        """Record a turn of each of these rows, and append what the environment said.

        Args:
            turns: what was sampled; tokens behind a turn's limit are dropped.

        Returns:
            The token ids of each reply; None where the conversation has ended.
        """
        asked = []
        for row, (ids, logprobs, reason) in zip(rows, turns, strict=True):
            start = self.start[row]
            end = min(start + len(ids), self.limit[row])
            count = end - start
            self.tokens[row, start:end] = torch.tensor(ids[:count], device=self.tokens.device)
            self.logprobs[row, start:end] = torch.tensor(logprobs[:count], device=self.tokens.device)
            asked.append(self.ask(row, end, reason if count == len(ids) else "length"))
        return [self.settle(row, future) for row, future in zip(rows, asked, strict=True)]

    def by_turns(self, sample: Callable[[list[int]], list[Sampled]]) -> None:
        """Hold all conversations, one turn of all rows at a time, for an engine that computes them anew at every turn.

        Args:
            sample: (rows) -> the next turn of each of them.
        """
        rows = list(range(len(self.start)))
        while rows:
            replies = self.advance(rows, sample(rows))
            rows = [row for row, reply in zip(rows, replies, strict=True) if reply is not None]

    def so_far(self, row: int) -> list[int]:
        """The row's tokens before its current turn."""
        ids: list[int] = self.tokens[row, : self.start[row]].tolist()
        return ids

    def room(self, rows: list[int]) -> int:
        """Maximum number of tokens that one of these rows may still write in its current turn."""
        return max(self.limit[row] - self.start[row] for row in rows)

    def from_start(self, table: Float[Tensor, "rows time"], rows: list[int]) -> Float[Tensor, "selected room"]:
        """The columns of a table that belong to the current turn of these rows."""
        steps = torch.arange(self.room(rows), device=table.device)
        columns = torch.tensor([self.start[row] for row in rows], device=table.device)[:, None] + steps
        return table[rows].gather(1, columns.clamp(max=table.shape[1] - 1))

    def turns(self, width: int) -> Turns:
        """The turns of all rows.

        Args:
            width: tokens of the longest completion.
        """
        device, longest = self.tokens.device, max(map(len, self.rewards))
        rewards = [values + [torch.nan] * (longest - len(values)) for values in self.rewards]
        values = {name: torch.tensor(numbers, device=device) for name, numbers in self.values.items()}
        return Turns(
            self.number[:, :width],
            torch.tensor(rewards, device=device),
            self.turn_reasons,
            values,
            torch.tensor(self.message_start, device=device),
        )

    def _received(self, row: int, future: "Future[Reply]") -> Reply:
        environment, name = self.environment, type(self.environment).__name__
        where = f"{name}, turn {len(self.turn_reasons[row])} of prompt {self.conversations[row].row.get('id')!r}"
        try:
            reply = future.result(environment.timeout_s)
        except TimeoutError as error:
            if future.done():
                raise  # the environment's own
            raise ConfigError(
                f"the environment has not replied in {environment.timeout_s:g} seconds ({where}); bound what it waits "
                "for, or raise its timeout_s."
            ) from error
        except BaseException as error:  # also SystemExit on a thread
            error.add_note(f"raised by the environment {where}")
            self.failed = True
            raise
        if not isinstance(reply, Reply):
            raise ConfigError(f"the environment replied with {reply!r:.80} ({where}); it must return a Reply.")
        if reply.text is not None and not isinstance(reply.text, str):
            raise ConfigError(f"the reply's text is a {type(reply.text).__name__} ({where}); give a text.")
        if reply.text is not None and reply.messages is not None:
            raise ConfigError(f"the reply has both a text and messages ({where}); give one of them.")
        if reply.reward is not None and not abs(float(reply.reward)) < float("inf"):
            raise ConfigError(f"the reply's reward is {reply.reward} ({where}); give a finite number or None.")
        if reply.max_tokens is not None and reply.max_tokens < 1:
            raise ConfigError(f"the reply's max_tokens is {reply.max_tokens} ({where}); set it to 1 or more, or None.")
        if unknown := [metric for metric in reply.metrics if metric not in environment.metrics]:
            raise ConfigError(f"the reply counts {unknown[0]!r} ({where}); add the name to {name}.metrics.")
        return reply

    def _encoded(self, row: int, reply: Reply) -> list[int]:
        tokenizer = self.policy.tokenizer
        if reply.messages is None:
            ids = encode_content(tokenizer, reply.text or "", keep=())
        else:
            ended = self.turn_reasons[row][-1] == "eos"
            ids = encode_reply(tokenizer, reply.messages, ended, self.policy.eos_token_ids)
        check_known(tokenizer, ids, self.policy.vocabulary, f"a reply of {type(self.environment).__name__}")
        return ids

    def _cut(self, row: int, why: str) -> None:
        self.values[why][row] = 1.0
        self.reasons[row] = "length"

    def _warn_endless(self) -> None:
        name = type(self.environment).__name__
        warnings.warn(
            f"{name} would have gone on after {self.environment.max_turns} turns, its max_turns, so conversations are "
            "cut there and count as truncated (metric turns_exhausted); let it end earlier, or raise max_turns.",
            stacklevel=2,
        )


def _check(environment: Environment) -> None:
    """Refuse an environment whose settings are out of range. Raises ConfigError."""
    name = type(environment).__name__
    for setting in ("max_turns", "concurrent", "overlap"):
        if (value := getattr(environment, setting)) < 1:
            raise ConfigError(f"{name}: {setting} is {value}; set it to 1 or more.")
    if environment.max_turn_tokens is not None and environment.max_turn_tokens < 1:
        raise ConfigError(
            f"{name}: max_turn_tokens is {environment.max_turn_tokens}; set it to 1 or more, or to null for no limit."
        )
    if not all(environment.stop):
        raise ConfigError(f"{name}: stop contains an empty text; remove it.")
    if taken := [metric for metric in environment.metrics if metric in (*CUT, *RESERVED)]:
        raise ConfigError(f"{name}: the metric {taken[0]!r} has the name of one that every environment has; rename it.")
