"""`generate` of transformers: the plain engine, for every architecture, and what the embedded one is measured against."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from policies import Policy
from rollouts.engine import Engine, StopStrings, assemble, check_prompts, full_precision, padded_forced, padded_left, warpers
from rollouts.sampling import SamplingParams


class _RecordLogprobs(LogitsProcessor):
    """Warps the logits as asked and keeps, one step at a time, the log-probs of the tokens that were then chosen."""

    def __init__(self, sampling: SamplingParams, forced: Tensor, prompt_width: int) -> None:
        self.warpers, self.forced, self.prompt_width = warpers(sampling), forced, prompt_width
        self.pending: Tensor | None = None
        self.chosen: list[Tensor] = []

    def record(self, tokens: Tensor) -> None:
        if self.pending is not None:
            self.chosen.append(self.pending.gather(1, tokens[:, None]).squeeze(1))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.record(input_ids[:, -1])
        warped = self.warpers(input_ids, scores.float())
        self.pending = warped.log_softmax(-1)
        step = input_ids.shape[1] - self.prompt_width
        if step < self.forced.shape[1]:
            given = self.forced[:, step, None]
            only = torch.full_like(warped, -torch.inf).scatter_(1, given.clamp(min=0), 0.0)
            warped = torch.where(given >= 0, only, warped)
        return warped


class _Stop(StoppingCriteria):
    """Stop strings within the completion alone, and whether the last stop was by one."""

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
    """`generate` of transformers, in batches of rows_at_once completions, on which the samples depend.

    The model's own generation defaults (a repetition penalty, a top-p of its makers) are not used: they would change the
    sampling distribution without the policy's log-probs knowing.
    """

    def matches(self, policy):
        return full_precision(policy)

    @torch.no_grad()
    def generate(self, policy, prompts, rows, group_size, sampling, forced=None, rows_at_once=None):
        check_prompts(policy, prompts, sampling)
        device = policy.device
        ids, mask = padded_left(prompts, policy.pad_token_id, device)
        ids, mask = ids.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)
        given = padded_forced(forced, len(ids), device)
        completions = ids.new_full((len(ids), sampling.max_new_tokens), policy.pad_token_id)
        logprobs = torch.zeros(completions.shape, device=device)
        lengths, reasons = torch.zeros(len(ids), dtype=torch.long, device=device), []
        was_training = policy.model.training
        policy.model.eval()
        try:
            for start in range(0, len(ids), rows_at_once or len(ids)):
                part = slice(start, start + (rows_at_once or len(ids)))
                tokens, values, stops = self._sample(policy, ids[part], mask[part], given[part], sampling)
                time = torch.arange(tokens.shape[1], device=device)
                ended_by_text = time == stops[:, None]
                ends = torch.isin(tokens, torch.tensor(policy.eos_token_ids, device=device)) | ended_by_text
                # Padding may be an end token itself: only the first end counts.
                lengths[part] = torch.where(ends.any(1), ends.long().argmax(1) + 1, tokens.shape[1])
                last = (lengths[part] - 1)[:, None]
                text, end = (found.gather(1, last)[:, 0].tolist() for found in (ended_by_text, ends))
                reasons += ["stop" if t else "eos" if e else "length" for t, e in zip(text, end, strict=True)]
                completions[part, : tokens.shape[1]], logprobs[part, : values.shape[1]] = tokens, values
        finally:
            policy.model.train(was_training)
        return assemble(policy, prompts, rows, completions, logprobs, lengths, given, reasons)

    def _sample(self, policy: Policy, ids: Tensor, mask: Tensor, forced: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, log-probs, the step at which a stop string ended the row or -1)"""
        recorder = _RecordLogprobs(sampling, forced, ids.shape[1])
        stop = _Stop(StopStrings(policy, sampling.stop), ids.shape[1], len(ids))
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=policy.eos_token_ids,
            pad_token_id=policy.pad_token_id,
        )
        model: Any = policy.model
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            output = model.generate(
                input_ids=ids,
                attention_mask=mask.long(),
                generation_config=config,
                logits_processor=LogitsProcessorList([recorder]),
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        finally:
            model.generation_config = own
        recorder.record(output[:, -1])
        return output[:, ids.shape[1] :], torch.stack(recorder.chosen, 1), stop.step
