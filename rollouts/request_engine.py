"""Engines that generate in another program, by requests; they know a conversation so far by its tokens alone."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from policies import Policy
from rollouts.batch import RolloutBatch
from rollouts.conversations import Conversations, Sampled
from rollouts.engine import Engine, Forced, Prompts, assemble, check_prompts, padded_forced, uniforms
from rollouts.environment import Environment
from rollouts.sampling import SamplingParams
from rollouts.turns import FinishReason
from support.errors import ConfigError


@dataclass
class Request:
    """One completion to generate."""

    ids: list[int]
    params: dict[str, Any]


@dataclass
class Answer:
    """The tokens that vLLM generated for a request, and their log-probs."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


class RequestEngine(Engine):
    """An engine that sends every completion, and every turn of a conversation, as a request of its own."""

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
        if policy.params.realign is not None:
            raise ConfigError(
                f"policy.realign is {policy.params.realign:g}, but {type(self).__name__} computes one path alone. "
                "Leave out model.engine, so that the embedded engine computes both, or set policy.realign to null."
            )
        check_prompts(policy, prompts, sampling)
        here = torch.device("cpu")
        forced_tokens = padded_forced(forced, len(prompts) * group_size, here)
        longest = sampling.max_new_tokens
        if environment is not None and environment.max_turn_tokens is not None:
            longest = min(longest, environment.max_turn_tokens)
        first = [[token for token in row if token >= 0][:longest] for row in forced_tokens.tolist()]
        by_row = [prompt for prompt in prompts for _ in range(group_size)]
        count, turns = len(by_row), None
        if environment is None:
            seeds = uniforms(rows, group_size, 1, here)[:, 0]
            sampled = self._sampled(policy, by_row, first, seeds, [longest] * count, sampling, [True] * count)
            tokens = torch.full((count, sampling.max_new_tokens), policy.pad_token_id)
            logprobs = torch.zeros(tokens.shape)
            lengths, reasons = torch.tensor([len(ids) for ids, _, _ in sampled]), [reason for _, _, reason in sampled]
            for row, (ids, values, _) in enumerate(sampled):
                tokens[row, : len(ids)], logprobs[row, : len(ids)] = torch.tensor(ids), torch.tensor(values)
        else:
            uniform = uniforms(rows, group_size, sampling.max_new_tokens, here)
            talk = Conversations(policy, environment, rows, group_size, sampling, forced_tokens, uniform)
            with_stops = replace(sampling, stop=talk.stop)

            def next_turns(live: list[int]) -> list[Sampled]:
                """The prefix cache knows the conversations so far, so that only their last turns are computed."""
                return self._sampled(
                    policy,
                    [by_row[row] + talk.so_far(row) for row in live],
                    [[] if talk.start[row] else first[row] for row in live],
                    torch.stack([uniform[row, talk.start[row]] for row in live]),
                    [talk.limit[row] - talk.start[row] for row in live],
                    with_stops,
                    [talk.stops[row] for row in live],
                )

            talk.by_turns(next_turns)
            tokens, logprobs, forced_tokens, reasons = talk.tokens, talk.logprobs, talk.forced, talk.reasons
            lengths = torch.tensor(talk.lengths)
            turns = talk.turns(int(lengths.max())).to(policy.device)
        self.rest(policy)
        tokens, logprobs, lengths, forced_tokens = (
            tensor.to(policy.device) for tensor in (tokens, logprobs, lengths, forced_tokens)
        )
        return assemble(policy, prompts, rows, tokens, logprobs, lengths, forced_tokens, reasons, turns)

    def _sampled(
        self,
        policy: Policy,
        sequences: Prompts,
        first: list[list[int]],
        uniform: Tensor,
        limits: list[int],
        sampling: SamplingParams,
        stops: list[bool],
    ) -> list[Sampled]:
        """One completion of each sequence.

        Args:
            first: forced tokens that it begins with. uniform: the number in [0, 1) that its seed comes from.
            limits: its maximum number of tokens. stops: whether stop strings end it.
        """
        seeds = (uniform.double() * 2**31).long().tolist()
        requests = [
            Request(
                sequence + start,
                {
                    "max_tokens": limit - len(start),
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "top_k": sampling.top_k,
                    "seed": seed,
                    "logprobs": 0,
                    "stop": (sampling.stop or None) if stopping else None,
                    "include_stop_str_in_output": True,
                    "stop_token_ids": policy.eos_token_ids,
                },
            )
            for sequence, start, seed, limit, stopping in zip(sequences, first, seeds, limits, stops, strict=True)
        ]
        # A request must leave room for a token; a row without room has nothing to sample.
        open_rows = [row for row, (start, limit) in enumerate(zip(first, limits, strict=True)) if len(start) < limit]
        answers = [Answer([], [], False)] * len(first)
        for row, answer in zip(open_rows, self.answer(policy, [requests[row] for row in open_rows]), strict=True):
            answers[row] = answer
        results: list[Sampled] = []
        for start, answer in zip(first, answers, strict=True):
            by_end_token = answer.stopped and answer.tokens[-1] in policy.eos_token_ids
            reason: FinishReason = "eos" if by_end_token else "stop" if answer.stopped else "length"
            results.append((start + answer.tokens, [0.0] * len(start) + answer.logprobs, reason))
        return results

    @abstractmethod
    def answer(self, policy: Policy, requests: list[Request]) -> list[Answer]:
        """Generate one answer per request, in order, with the policy's current weights."""

    def rest(self, policy: Policy) -> None:
        """Called at the end of `generate`, after one or more calls of `answer`."""
