"""The engine for every architecture, `generate` of transformers; tests compare the other engines with it."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from policies import Policy
from rollouts.batch import RolloutBatch
from rollouts.engine import (
    Engine,
    Forced,
    Prompts,
    StopStrings,
    assemble,
    check_prompts,
    draw,
    full_precision,
    padded_forced,
    padded_left,
    uniforms,
    warpers,
)
from rollouts.sampling import SamplingParams


class _Choose(LogitsProcessor):
    """Processor that draws the next token, leaves `generate` no other choice, and records the token's log-prob.

    Args:
        uniform: (rows, steps), the random numbers. forced: as from padded_forced.
    """

    def __init__(self, sampling: SamplingParams, uniform: Tensor, forced: Tensor, prompt_width: int) -> None:
        self.sampling, self.warpers, self.uniform = sampling, warpers(sampling), uniform
        self.forced, self.prompt_width = forced, prompt_width
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        step = input_ids.shape[1] - self.prompt_width
        tokens, logprobs = draw(
            self.warpers(input_ids, scores.float()), self.uniform[:, step], self.sampling.temperature == 0
        )
        self.logprobs.append(logprobs)
        if step < self.forced.shape[1]:
            tokens = torch.where(self.forced[:, step] >= 0, self.forced[:, step], tokens)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class _Stop(StoppingCriteria):
    """Criterion for stop strings within the completion, which records the step at which each row stopped.

    Fields:
        step: (rows,), index of the last token of a stopped row; -1 for the others.
    """

    def __init__(self, stop: StopStrings, prompt_width: int, rows: int) -> None:
        self.stop, self.prompt_width = stop, prompt_width
        self.step = torch.full((rows,), -1)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Tensor:
        completions = input_ids[:, self.prompt_width :]
        steps = torch.full((len(completions),), completions.shape[1], device=completions.device)
        stopped = self.stop(completions, steps)
        self.step = self.step.to(stopped.device)
        self.step[stopped & (self.step < 0)] = completions.shape[1] - 1
        return stopped


class TransformersEngine(Engine):
    """Generation with `generate` of transformers, in batches of rows_at_once completions.

    With equal seeds it draws the same tokens as the embedded engine. The model's own generation defaults (a repetition
    penalty, a top-p) are not used: they would change the sampling distribution, but not the policy's log-probs.
    """

    def matches(self, policy: Policy) -> bool:
        return full_precision(policy)

    @torch.no_grad()
    def generate(
        self,
        policy: Policy,
        prompts: Prompts,
        rows: list[dict[str, Any]],
        group_size: int,
        sampling: SamplingParams,
        forced: Forced = None,
        rows_at_once: int | None = None,
    ) -> RolloutBatch:
        check_prompts(policy, prompts, sampling)
        device = policy.device
        ids, mask = padded_left(prompts, policy.pad_token_id, device)
        ids, mask = ids.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)
        forced_tokens = padded_forced(forced, len(ids), device)
        uniform = uniforms(rows, group_size, sampling.max_new_tokens, device)
        completions = ids.new_full((len(ids), sampling.max_new_tokens), policy.pad_token_id)
        logprobs = torch.zeros(completions.shape, device=device)
        lengths, reasons = torch.zeros(len(ids), dtype=torch.long, device=device), []
        was_training = policy.model.training
        policy.model.eval()
        try:
            for start in range(0, len(ids), rows_at_once or len(ids)):
                part = slice(start, start + (rows_at_once or len(ids)))
                tokens, values, stops = self._sample(
                    policy, ids[part], mask[part], uniform[part], forced_tokens[part], sampling
                )
                time = torch.arange(tokens.shape[1], device=device)
                ended_by_text = time == stops[:, None]
                ends = torch.isin(tokens, torch.tensor(policy.eos_token_ids, device=device)) | ended_by_text
                # Padding may be an end token itself: only the first end counts.
                lengths[part] = torch.where(ends.any(1), ends.long().argmax(1) + 1, tokens.shape[1])
                last = (lengths[part] - 1)[:, None]
                by_text, by_any = (flags.gather(1, last)[:, 0].tolist() for flags in (ended_by_text, ends))
                reasons += ["stop" if t else "eos" if e else "length" for t, e in zip(by_text, by_any, strict=True)]
                completions[part, : tokens.shape[1]], logprobs[part, : values.shape[1]] = tokens, values
        finally:
            policy.model.train(was_training)
        return assemble(policy, prompts, rows, completions, logprobs, lengths, forced_tokens, reasons)

    def _sample(
        self, policy: Policy, ids: Tensor, mask: Tensor, uniform: Tensor, forced: Tensor, sampling: SamplingParams
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, log-probs, the step at which a stop string ended each row or -1)."""
        choose = _Choose(sampling, uniform, forced, ids.shape[1])
        stop = _Stop(StopStrings(policy, sampling.stop), ids.shape[1], len(ids))
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=policy.eos_token_ids,
            pad_token_id=policy.pad_token_id,
        )
        # Not peft's wrapper: its `generate` would leave the temporary configuration on the model below it.
        model: Any = policy.bare
        model_config, model.generation_config = model.generation_config, GenerationConfig()
        try:
            output = model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                generation_config=config,
                logits_processor=LogitsProcessorList([choose]),
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        finally:
            model.generation_config = model_config
        return output[:, ids.shape[1] :], torch.stack(choose.logprobs, 1), stop.step
