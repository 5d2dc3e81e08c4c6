"""Engines generate completions and record the log-probs of the distribution that they sampled from."""

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, StopStringCriteria
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from policies import Policy
from policies.config_checks import context_of
from rollouts.batch import RolloutBatch
from rollouts.environment import Environment
from rollouts.sampling import SamplingParams
from rollouts.turns import FinishReason, Turns
from support.errors import ConfigError
from support.identity import identity
from support.processes import gathered, in_one_order
from support.seeding import derive_seed

#: column of a row that occurs several times in a rollout: its number among the occurrences
COPY = "copy_in_rollout"

Prompts = list[list[int]]
#: why a completion ended, by the number that tensors have for it
REASONS: tuple[FinishReason, ...] = ("length", "eos", "stop")
DRAWN = 2**20  # maximum number of logits that tokens are drawn from at once
Forced = list[list[int]] | None


class Engine(ABC):
    """The interface between methods and whatever generates completions."""

    def matches(self, policy: Policy) -> bool:
        """Whether recorded log-probs are the policy's up to float32 rounding, and so can be behaviour log-probs."""
        return False

    def identity(self) -> Any:
        """The settings that decide what is generated, as plain data; by default everything that the engine holds."""
        return identity(vars(self))

    @abstractmethod
    def generate(
        self,
        policy: Policy,
        prompts: Prompts,
        rows: list[dict[str, Any]],
        group_size: int,
        sampling: SamplingParams,
        forced: Forced = None,
        rows_at_once: int | None = None,
        environment: Environment | None = None,
    ) -> RolloutBatch:
        """Generate `group_size` completions of every prompt (token ids), prompt-major.

        The draws depend on the current state of torch's generator.

        Args:
            rows: the data row of each prompt.
            forced: first tokens of every completion, which are not sampled: False in the action mask,
                log-prob 0. Lists may be empty. An end token among them does not end the completion.
            rows_at_once: maximum number of completions generated side by side; None sets no limit.
            environment: what follows each turn of a completion; sampling.max_new_tokens then bounds all turns and the
                environment's text together. None for completions of one turn.
        """


def full_precision(policy: Policy) -> bool:
    """Whether the policy computes in float32, with its current weights and autocast."""
    is_rounded = policy.compute != "float32" or torch.is_autocast_enabled(policy.device.type)
    return next(policy.model.parameters()).dtype == torch.float32 and not is_rounded


def check_prompts(policy: Policy, prompts: Prompts, sampling: SamplingParams) -> None:
    """Raise ConfigError for a prompt that is empty or leaves no room for a completion in the model's context."""
    if not prompts:
        raise ConfigError("a rollout has no prompts; check the data set's prompt column.")
    if not all(prompts):
        raise ConfigError(
            f"prompt {prompts.index([])} of a rollout has no tokens; every prompt needs at least one, so check the "
            "data set's prompt column."
        )
    longest = max(map(len, prompts))
    context, remark = context_of(policy.bare.config)
    if context is not None and longest + sampling.max_new_tokens > context:
        raise ConfigError(
            f"a prompt of {longest} tokens plus sampling.max_new_tokens={sampling.max_new_tokens} exceeds the model's "
            f"context of {context} tokens{remark}; drop or shorten long prompts, or lower sampling.max_new_tokens."
        )


def with_copy_numbers(rows: list[dict[str, Any]], rank: int, updates: int) -> list[dict[str, Any]]:
    """The rows, those whose id occurs more than once in the whole rollout with their number among the occurrences.

    All processes take part: copies of a prompt on different processes, or sampled one part after the other, draw
    different completions only if they are told apart.

    Args:
        rows: the prompts of this process.
        rank: of this process.
        updates: number of updates that the rollout is divided into.
    """
    keys = gathered([str(row.get("id")) for row in rows])
    counts, numbers = Counter[str](), []
    for owner, key in in_one_order([[(owner, key) for key in keys] for owner, keys in enumerate(keys)], updates):
        if owner == rank:
            numbers.append(counts[key])
        counts[key] += 1
    copied = {key for key, count in counts.items() if count > 1}
    return [
        {name: value for name, value in row.items() if name != COPY}
        | ({COPY: number} if str(row.get("id")) in copied else {})
        for row, number in zip(rows, numbers, strict=True)
    ]


def uniforms(
    rows: list[dict[str, Any]], group_size: int, time: int, device: torch.device
) -> Float[Tensor, "rows time"]:
    """Random numbers in [0, 1) that decide every token.

    They depend on the generator's state at the call, the prompt's `id` and its number among the copies of this prompt,
    the completion and the step, so that a completion depends neither on the prompts beside it nor on the process that
    draws it.

    Args:
        rows: the data rows; rows with the same id get different numbers. `with_copy_numbers` counts the copies of a
            whole rollout; without it the copies of this call are counted.
    """
    call, seen, numbers = int(torch.randint(2**62, ())), Counter[str](), []
    for row in rows:
        key = str(row.get("id"))
        generator = torch.Generator().manual_seed(derive_seed(call, key, row.get(COPY, seen[key])))
        seen[key] += 1
        numbers.append(torch.rand(group_size, time, generator=generator))
    return torch.cat(numbers).to(device)


def padded_left(prompts: Prompts, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), each (prompts, longest)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]


def padded_together(lengths: list[int], by_length: bool, at_once: int | None) -> list[list[int]]:
    """Rows that go through the model side by side, as lists of indices.

    Args:
        lengths: tokens of each row's prompt.
        by_length: put prompts of one length together only, for a model that does not bear padding.
        at_once: maximum number of rows; None sets no limit.
    """
    kinds = sorted(set(lengths)) if by_length else [None]
    parts = []
    for kind in kinds:
        rows = [row for row, length in enumerate(lengths) if kind in (None, length)]
        step = at_once or len(rows)
        parts += [rows[start : start + step] for start in range(0, len(rows), step)]
    return parts


def padded_forced(forced: Forced, rows: int, device: torch.device) -> Tensor:
    """(rows, longest), -1 where nothing is forced."""
    forced = forced or [[]] * rows
    if len(forced) != rows:
        raise ValueError(f"forced has {len(forced)} entries for {rows} completions; give one list per completion.")
    longest = max(map(len, forced))
    padded = [tokens + [-1] * (longest - len(tokens)) for tokens in forced]
    return torch.tensor(padded, dtype=torch.long, device=device).view(rows, longest)


def warpers(sampling: SamplingParams) -> LogitsProcessorList:
    """The processors that turn the model's logits into those that are sampled from."""
    processors = LogitsProcessorList()
    if sampling.temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.temperature > 0 and sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.temperature > 0 and sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return processors


def draw(
    logits: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, "rows"], greedy: bool
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """(tokens, log-probs): the inverse distribution function at the random numbers; if greedy, the likeliest."""
    rows = max(1, DRAWN // logits.shape[1])
    if len(logits) > rows:  # a few at a time: the lines below need several copies of the logits
        parts = [draw(logits[i : i + rows], uniform[i : i + rows], greedy) for i in range(0, len(logits), rows)]
        return torch.cat([tokens for tokens, _ in parts]), torch.cat([values for _, values in parts])
    logprobs = logits - logits.logsumexp(1, keepdim=True)
    if greedy:
        tokens = logits.argmax(1, keepdim=True)
    else:
        below = logprobs.exp().cumsum(1)
        # Below the total sum, and to the right of tokens with probability 0 that precede the chosen one.
        tokens = torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True).clamp(max=below.shape[1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


class Endings:
    """Decides why rows end with their newest token.

    Forced tokens are given like the prompt's: none of them ends a row, and none is a part of a stop string.

    Args:
        stop: the stop strings, found by transformers' matcher over tokens.
        forced: of every row, as from padded_forced.
    """

    def __init__(self, policy: Policy, stop: list[str], forced: Int[Tensor, "rows forced_time"]) -> None:
        self.end_tokens = torch.tensor(policy.eos_token_ids, device=forced.device)
        self.forced = (forced >= 0).sum(1)
        self.criteria = StopStringCriteria(policy.tokenizer, stop) if stop else None
        #: number of tokens before the newest one that can be parts of a stop string
        self.reach = 0 if self.criteria is None else self.criteria.maximum_token_len - 1

    def __call__(
        self,
        tokens: Int[Tensor, "all_rows time"],
        lengths: Int[Tensor, "rows"],
        rows: Int[Tensor, "rows"],
        start: Int[Tensor, "rows"] | None = None,
        stops: Bool[Tensor, "rows"] | None = None,
    ) -> Int[Tensor, "rows"]:
        """The index in REASONS of each row's end, "length" for a row that does not end.

        Args:
            tokens: of all rows. lengths: number of tokens so far, at least 1. rows: indices of the rows to look at.
            start: index of the first token of the current turn; 0 if None.
            stops: whether stop strings end the current turn; all if None.
        """
        first = self.forced[rows] if start is None else torch.maximum(self.forced[rows], start)
        ended = torch.isin(tokens[rows, lengths - 1], self.end_tokens) & (lengths > first)
        reasons = ended.long() * REASONS.index("eos")
        if self.criteria is None:
            return reasons
        places = lengths[:, None] - torch.arange(self.reach + 1, 0, -1, device=tokens.device)
        no_token = torch.iinfo(tokens.dtype).max  # matches no string
        tail = torch.where(places >= first[:, None], tokens[rows[:, None], places.clamp(min=0)], no_token)
        stopped: Any = self.criteria(tail, None)
        if stops is not None:
            stopped = stopped & stops
        return torch.where(stopped & ~ended, REASONS.index("stop"), reasons)


def assemble(
    policy: Policy,
    prompts: Prompts,
    rows: list[dict[str, Any]],
    completions: Tensor,
    logprobs: Tensor | None,
    lengths: Tensor,
    forced: Tensor,
    reasons: list[FinishReason],
    turns: Turns | None = None,
) -> RolloutBatch:
    """Make the batch, with padding and forced tokens masked.

    Args:
        completions, logprobs: (rows, time); values behind a row's length are ignored. An engine that does not know the
            log-probs of its tokens gives None.
        lengths: (rows,).
        forced: as from padded_forced.
    """
    width = int(lengths.max())
    steps = torch.arange(width, device=completions.device)
    mask = steps < lengths[:, None]
    if logprobs is None:
        logprobs = torch.full(completions.shape, torch.nan, device=completions.device)
    action = mask.clone()
    shown = min(width, forced.shape[1])
    action[:, :shown] &= forced[:, :shown] < 0
    ids, prompt_mask = padded_left(prompts, policy.pad_token_id, completions.device)
    return RolloutBatch(
        prompt_ids=ids,
        prompt_mask=prompt_mask,
        completion_ids=completions[:, :width].masked_fill(~mask, policy.pad_token_id),
        completion_mask=mask,
        action_mask=action,
        behaviour_logprobs=logprobs[:, :width].masked_fill(~action, 0.0),
        finish_reasons=reasons,
        rows=rows,
        turns=turns,
        decoder=policy.decode,
    )
