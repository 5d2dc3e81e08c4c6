"""The default engine: it generates in the training process, on the training weights.

There is no second copy of the model, and there are no weights to synchronise. `rollouts/continuous_batching.py` decides
which rows are computed together; `rollouts/decoder.py`, or for recurrent models `rollouts/recurrent_decoder.py`,
computes them.
"""

import warnings
from typing import Any

import torch

from policies import Policy
from policies.adapters import acting_adapters
from policies.compute import in_its_precision
from policies.modes import evaluation_mode
from policies.recurrent import RecurrentForCausalLM
from rollouts.batch import RolloutBatch
from rollouts.continuous_batching import ContinuousBatching
from rollouts.conversation_batching import ConversationBatching
from rollouts.conversations import Conversations
from rollouts.decoder import Decoder
from rollouts.engine import (
    REASONS,
    Engine,
    Forced,
    Prompts,
    assemble,
    check_prompts,
    full_precision,
    padded_forced,
    uniforms,
)
from rollouts.engine_checks import allowed_gap, recorded_gap
from rollouts.environment import Environment
from rollouts.kv_cache import SharedPrompts
from rollouts.realigned_decoder import RealignedDecoder
from rollouts.recurrent_decoder import RecurrentDecoder
from rollouts.sampling import SamplingParams
from rollouts.transformers_engine import TransformersEngine

AnyDecoder = Decoder | RecurrentDecoder
TRANSPOSE_FROM = 16  # number of steps from which a transposed copy of the weights saves time


class EmbeddedEngine(Engine):
    """Generation with a decoder for Llama-shaped and for the project's recurrent models; for others with
    TransformersEngine, after a warning.

    The first call compares the decoder with the model's own forward.
    """

    def __init__(self) -> None:
        self._checked: dict[torch.dtype, bool] = {}
        self._compared = False  # whether the first completions were, with plain forwards
        self._other = TransformersEngine()

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
        device_type, dtype = policy.device.type, next(policy.model.parameters()).dtype
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else dtype
        transpose = device_type == "cpu" and sampling.max_new_tokens >= TRANSPOSE_FROM
        decoder = self._decoder(policy, max(prompts, key=len), dtype, transpose)
        if decoder is None:
            return self._other.generate(policy, prompts, rows, group_size, sampling, forced, rows_at_once, environment)
        conversations: Conversations | None = None
        with torch.autocast(device_type, enabled=False):
            uniform = uniforms(rows, group_size, sampling.max_new_tokens, policy.device)
            forced_tokens = padded_forced(forced, len(uniform), policy.device)
            parts = (decoder, prompts, group_size, sampling, forced_tokens, uniform)
            if environment is None:
                run = ContinuousBatching(policy, *parts)
            else:
                conversations = Conversations(policy, environment, rows, group_size, sampling, forced_tokens, uniform)
                run, forced_tokens = ConversationBatching(policy, conversations, *parts), conversations.forced
            run.generate(rows_at_once or len(prompts) * group_size)
        if not self._compared:
            by_row = [prompt for prompt in prompts for _ in range(group_size)]
            with evaluation_mode(policy.model):
                gap = recorded_gap(policy, by_row, run.tokens, run.logprobs, run.lengths, forced_tokens, sampling)
            if not gap <= allowed_gap(policy):
                self._fall_back(
                    dtype, f"{type(policy.bare).__name__} decodes differently (mean log-probs differ by {gap:.2g})"
                )
                return self._other.generate(
                    policy, prompts, rows, group_size, sampling, forced, rows_at_once, environment
                )
            self._compared = True
        reasons, turns = [REASONS[i] for i in run.reasons.tolist()], None
        if conversations is not None:
            reasons, turns = conversations.reasons, conversations.turns(int(run.lengths.max()))
        return assemble(policy, prompts, rows, run.tokens, run.logprobs, run.lengths, forced_tokens, reasons, turns)

    def _decoder(self, policy: Policy, prompt: list[int], dtype: torch.dtype, transpose: bool) -> AnyDecoder | None:
        if self._checked.get(dtype) is False:
            return None
        try:
            if dtype not in self._checked:
                with evaluation_mode(policy.model), acting_adapters(policy.model):
                    _check(_decoder_of(policy, dtype, transpose), policy, prompt)
                self._checked[dtype] = True
            return _decoder_of(policy, dtype, transpose)
        except ValueError as reason:
            self._fall_back(dtype, str(reason))
            return None

    def _fall_back(self, dtype: torch.dtype, reason: str) -> None:
        warnings.warn(f"{reason}; TransformersEngine generates the completions instead, slower.", stacklevel=3)
        self._checked[dtype] = False


def _decoder_of(policy: Policy, dtype: torch.dtype, transpose: bool) -> AnyDecoder:
    """A decoder. Raises ValueError for a model of a shape that is not known, whatever is missing or different in it."""
    if isinstance(policy.bare, RecurrentForCausalLM):
        return RecurrentDecoder(policy.bare, dtype)
    try:
        if policy.params.realign is not None:
            return RealignedDecoder(policy.bare, dtype, transpose, policy.params.realign)
        return Decoder(policy.bare, dtype, transpose)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{type(policy.bare).__name__} is built differently from Llama ({error})") from error


def _check(decoder: AnyDecoder, policy: Policy, prompt: list[int]) -> None:
    """Compare prefill and two steps with one plain forward over the same tokens. Raises ValueError if they differ."""
    ids = torch.tensor([prompt + prompt[:1] * 2], device=policy.device)
    expected = policy.model(input_ids=ids, use_cache=False).logits[0, -3:].float().log_softmax(-1)
    with torch.autocast(policy.device.type, enabled=False):
        prompt_cache: Any = decoder.prompt_cache()
        completion_cache: Any = decoder.cache()
        prompt_cache.reserve(1, len(prompt))
        completion_cache.reserve(1, 2)
        slot = torch.zeros(1, dtype=torch.long, device=policy.device)
        prompt_cache.lengths = slot.clone()
        prompt_cache.hidden = decoder.embedding.new_zeros(1, decoder.embedding.shape[1])
        decoder.prefill(ids[:, : len(prompt)], slot + len(prompt), prompt_cache, slot)
        outputs = [prompt_cache.hidden]
        shared: Any = SharedPrompts(prompt_cache, slot) if decoder.reads_prompts else None
        if shared is None:
            completion_cache.start(slice(0, 1), prompt_cache, slot)
        for step in range(2):
            place = slot + step
            outputs.append(decoder.step(ids[:, 0], place + len(prompt), place, step, completion_cache, shared))
        logprobs = decoder.logits(torch.cat(outputs)).float().log_softmax(-1)
    differences = (logprobs - expected).exp().sub(1).abs().mul(expected.exp())  # of probabilities
    gap = float(differences.sum(-1).max())
    tolerance = 1e-3 if full_precision(policy) else 0.2
    if not gap <= tolerance:
        raise ValueError(
            f"{type(policy.bare).__name__} decodes differently (probabilities differ by {gap:.2g} in sum, at most "
            f"{tolerance} allowed)"
        )
