"""The engine for every architecture, `generate` of transformers; tests compare the other engines with it."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from policies import Policy
from policies.compute import in_its_precision
from policies.modes import evaluation_mode
from policies.packing import limits
from policies.start_checks import FOREIGN
from rollouts.batch import RolloutBatch
from rollouts.carried_turns import carry_turns
from rollouts.conversations import Conversations, Sampled
from rollouts.engine import (
    Engine,
    Forced,
    Prompts,
    assemble,
    check_prompts,
    full_precision,
    padded_forced,
    padded_left,
    padded_together,
    uniforms,
)
from rollouts.engine_checks import allowed_gap, recorded_gap
from rollouts.environment import Environment
from rollouts.sampling import SamplingParams
from rollouts.transformers_sampling import Part, sample_part
from rollouts.turns import FinishReason
from support.errors import ConfigError

#: (tokens, log-probs, lengths, finish reasons) of all rows
Generated = tuple[Tensor, Tensor, Tensor, list[FinishReason]]


@dataclass(frozen=True)
class Way:
    """A way of generating.

    Args:
        by_length: only prompts of one length side by side, so that nothing is padded.
        cache: with a cache of keys and values.
        carried: the next turn of a conversation goes on from the cache; without it, the conversation is computed anew.
    """

    by_length: bool
    cache: bool
    carried: bool = False

    def __str__(self) -> str:
        rows = "prompts of one length" if self.by_length else "padded prompts"
        return f"{rows} with{'' if self.cache else 'out'} a cache{' that is kept between turns' * self.carried}"


#: the fastest first; the first one is for conversations
WAYS = [Way(False, True, carried=True), Way(False, True), Way(True, True), Way(True, False)]


class TransformersEngine(Engine):
    """Generation with `generate` of transformers, in batches of rows_at_once completions.

    With equal seeds it draws the same tokens as the embedded engine. The model's own generation defaults (a repetition
    penalty, a top-p) are not used: they would change the sampling distribution, but not the policy's log-probs.
    Conversations advance by one turn at a time, all rows of a batch together.
    """

    def __init__(self) -> None:
        #: for conversations (True) and completions of one turn (False), the way of generating that gave the log-probs
        #: of plain forwards on the first completions
        self.ways: dict[bool, Way] = {}

    def matches(self, policy: Policy) -> bool:
        return full_precision(policy)

    def identity(self) -> Any:
        return {}  # it has no settings

    @torch.no_grad()
    @in_its_precision
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
        check_prompts(policy, prompts, sampling)
        policy.check(prompts)
        by_row = [prompt for prompt in prompts for _ in range(group_size)]
        forced_tokens = padded_forced(forced, len(by_row), policy.device)
        uniform = uniforms(rows, group_size, sampling.max_new_tokens, policy.device)
        problems: list[str] = []
        talks = environment is not None
        for way in [self.ways[talks]] if talks in self.ways else WAYS[0 if talks else 1 :]:
            if policy.scoring == "by_length":
                way = replace(way, by_length=True, carried=False)
            if way.carried and (limits(policy.bare.config) or getattr(policy.bare, "_is_stateful", False)):
                continue  # a window would count, a state take up, the padding behind turns: short comparisons miss it
            conversations: Conversations | None = None
            if environment is not None:
                conversations = Conversations(policy, environment, rows, group_size, sampling, forced_tokens, uniform)
            try:
                with evaluation_mode(policy.model):
                    if conversations is None:
                        fixed = forced_tokens
                        made = self._rows(policy, by_row, uniform, fixed, sampling, rows_at_once, way)
                    else:
                        fixed = conversations.forced
                        made = self._hold(policy, by_row, uniform, conversations, rows_at_once, way)
                    if talks in self.ways:
                        break
                    gap = recorded_gap(policy, by_row, *made[:3], fixed, sampling)
            except FOREIGN as error:
                of_environment = conversations is not None and conversations.failed
                if talks in self.ways or of_environment or isinstance(error, torch.OutOfMemoryError):
                    raise
                problems.append(f"{way}: {type(error).__name__} ({str(error)[:100]})")
                continue
            if gap <= allowed_gap(policy):
                self.ways[talks] = way
                break
            problems.append(f"{way}: {gap:.2g}")
        else:
            raise ConfigError(
                f"`generate` of {type(policy.bare).__name__} samples from another distribution than its forward (mean "
                f"differences of log-probs, {'; '.join(problems)}); use another engine or another model."
            )
        if problems:
            warnings.warn(
                f"`generate` of {type(policy.bare).__name__} differs from its forward ({'; '.join(problems)}), so it "
                f"generates {way}, slower.",
                stacklevel=2,
            )
        tokens, logprobs, lengths, reasons = made
        turns = None if conversations is None else conversations.turns(int(lengths.max()))
        return assemble(policy, prompts, rows, tokens, logprobs, lengths, fixed, reasons, turns)

    def _rows(
        self,
        policy: Policy,
        prompts: Prompts,
        uniform: Tensor,
        forced: Tensor,
        sampling: SamplingParams,
        rows_at_once: int | None,
        way: Way,
        stops: list[bool] | None = None,
    ) -> Generated:
        """One completion per prompt.

        Args:
            stops: as in `sample_part`.
        """
        device = policy.device
        ids, mask = padded_left(prompts, policy.pad_token_id, device)
        completions = ids.new_full((len(ids), sampling.max_new_tokens), policy.pad_token_id)
        logprobs = torch.zeros(completions.shape, device=device)
        lengths = torch.zeros(len(ids), dtype=torch.long, device=device)
        reasons: list[FinishReason] = ["length"] * len(ids)
        for rows in padded_together([len(prompt) for prompt in prompts], way.by_length, rows_at_once):
            first = ids.shape[1] - len(prompts[rows[0]]) if way.by_length else 0
            part = sample_part(
                policy,
                ids[rows, first:],
                mask[rows, first:],
                uniform[rows],
                forced[rows],
                sampling,
                way.cache,
                None if stops is None else [stops[row] for row in rows],
            )
            for row, reason in zip(rows, part.reasons, strict=True):
                reasons[row] = reason
            lengths[rows] = part.lengths
            completions[rows, : part.tokens.shape[1]] = part.tokens
            logprobs[rows, : part.logprobs.shape[1]] = part.logprobs
        return completions, logprobs, lengths, reasons

    def _hold(
        self,
        policy: Policy,
        prompts: Prompts,
        uniform: Tensor,
        conversations: Conversations,
        rows_at_once: int | None,
        way: Way,
    ) -> Generated:
        """One conversation per prompt."""
        sampling = replace(conversations.sampling, stop=conversations.stop)

        def carried(rows: list[int], ids: Tensor, mask: Tensor, cache: Any) -> tuple[list[Sampled], Tensor, Any]:
            part: Part = sample_part(
                policy,
                ids,
                mask,
                conversations.from_start(uniform, rows),
                conversations.from_start(conversations.forced, rows),
                replace(sampling, max_new_tokens=conversations.room(rows)),
                use_cache=True,
                stops=[conversations.stops[row] for row in rows],
                keep_cache=True,
                cache=cache,
            )
            return part.turns(), part.tokens, part.cache

        def anew(rows: list[int]) -> list[Sampled]:
            generated = self._rows(
                policy,
                [prompts[row] + conversations.so_far(row) for row in rows],
                conversations.from_start(uniform, rows),
                conversations.from_start(conversations.forced, rows),
                replace(sampling, max_new_tokens=conversations.room(rows)),
                rows_at_once,
                way,
                [conversations.stops[row] for row in rows],
            )
            return Part(*generated, cache=None).turns()

        if way.carried:
            for rows in padded_together([len(prompt) for prompt in prompts], False, rows_at_once):
                carry_turns(conversations, rows, [prompts[row] for row in rows], carried)
        else:
            conversations.by_turns(anew)
        lengths = torch.tensor(conversations.lengths, device=policy.device)
        return conversations.tokens, conversations.logprobs, lengths, conversations.reasons
