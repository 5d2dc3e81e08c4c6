"""The engine for every architecture, `generate` of transformers; tests compare the other engines with it."""

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from policies import Policy
from policies.modes import evaluation_mode
from policies.start_checks import FOREIGN
from rollouts.batch import FinishReason, RolloutBatch
from rollouts.engine import (
    REASONS,
    Endings,
    Engine,
    Forced,
    Prompts,
    assemble,
    check_prompts,
    draw,
    full_precision,
    padded_forced,
    padded_left,
    padded_together,
    uniforms,
    warpers,
)
from rollouts.engine_checks import allowed_gap, recorded_gap
from rollouts.sampling import SamplingParams
from support.errors import ConfigError

#: (prompts of one length at a time, with a cache): the ways of generating, the fastest first
WAYS = [(False, True), (True, True), (True, False)]


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
    """Criterion that ends rows, and records why and where.

    Fields:
        reasons: (rows,), index in REASONS. lengths: (rows,), tokens of each completion.
    """

    def __init__(self, endings: Endings, prompt_width: int, rows: int, device: torch.device) -> None:
        self.endings, self.prompt_width = endings, prompt_width
        self.eos_token_id = endings.end_tokens  # by this name `generate` knows that ended rows are padded
        self.rows = torch.arange(rows, device=device)
        self.reasons, self.lengths = torch.zeros_like(self.rows), torch.zeros_like(self.rows)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Tensor:
        completions = input_ids[:, self.prompt_width :]
        lengths = torch.full_like(self.rows, completions.shape[1])
        live = self.reasons == 0
        self.lengths = torch.where(live, lengths, self.lengths)
        self.reasons = torch.where(live, self.endings(completions, lengths, self.rows), self.reasons)
        return self.reasons > 0


class TransformersEngine(Engine):
    """Generation with `generate` of transformers, in batches of rows_at_once completions.

    With equal seeds it draws the same tokens as the embedded engine. The model's own generation defaults (a repetition
    penalty, a top-p) are not used: they would change the sampling distribution, but not the policy's log-probs.
    """

    def __init__(self) -> None:
        #: the way of generating that gave the log-probs of plain forwards on the first completions
        self._way: tuple[bool, bool] | None = None

    def matches(self, policy: Policy) -> bool:
        return full_precision(policy)

    def identity(self) -> Any:
        return {}  # it has no settings

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
        policy.check(prompts)
        by_row = [prompt for prompt in prompts for _ in range(group_size)]
        forced_tokens = padded_forced(forced, len(by_row), policy.device)
        uniform = uniforms(rows, group_size, sampling.max_new_tokens, policy.device)
        problems: list[str] = []
        for way in WAYS if self._way is None else [self._way]:
            by_length = way[0] or policy.scoring == "by_length"
            name = f"{'prompts of one length' if by_length else 'padded prompts'} with{'' if way[1] else 'out'} a cache"
            try:
                with evaluation_mode(policy.model):
                    tokens, logprobs, lengths, reasons = self._rows(
                        policy, by_row, uniform, forced_tokens, sampling, rows_at_once, by_length, way[1]
                    )
                    if self._way is not None:
                        break
                    gap = recorded_gap(policy, by_row, tokens, logprobs, lengths, forced_tokens, sampling)
            except FOREIGN as error:
                if self._way is not None or isinstance(error, torch.OutOfMemoryError):
                    raise
                problems.append(f"{name}: {type(error).__name__} ({str(error)[:100]})")
                continue
            if gap <= allowed_gap(policy):
                self._way = way
                break
            problems.append(f"{name}: {gap:.2g}")
        else:
            raise ConfigError(
                f"`generate` of {type(policy.bare).__name__} samples from another distribution than its forward (mean "
                f"differences of log-probs, {'; '.join(problems)}); use another engine or another model."
            )
        if problems:
            warnings.warn(
                f"`generate` of {type(policy.bare).__name__} differs from its forward ({'; '.join(problems)}), so it "
                f"generates {'with' if way[1] else 'without'} a cache for prompts of one length at a time, slower.",
                stacklevel=2,
            )
        return assemble(policy, prompts, rows, tokens, logprobs, lengths, forced_tokens, reasons)

    def _rows(
        self,
        policy: Policy,
        prompts: Prompts,
        uniform: Tensor,
        forced: Tensor,
        sampling: SamplingParams,
        rows_at_once: int | None,
        by_length: bool,
        use_cache: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[FinishReason]]:
        """(tokens, log-probs, lengths, finish reasons) of one completion per prompt."""
        device = policy.device
        ids, mask = padded_left(prompts, policy.pad_token_id, device)
        completions = ids.new_full((len(ids), sampling.max_new_tokens), policy.pad_token_id)
        logprobs = torch.zeros(completions.shape, device=device)
        lengths = torch.zeros(len(ids), dtype=torch.long, device=device)
        reasons: list[FinishReason] = ["length"] * len(ids)
        for part in padded_together([len(prompt) for prompt in prompts], by_length, rows_at_once):
            first = ids.shape[1] - len(prompts[part[0]]) if by_length else 0
            tokens, values, stop = self._sample(
                policy, ids[part, first:], mask[part, first:], uniform[part], forced[part], sampling, use_cache
            )
            for row, reason in zip(part, stop.reasons.tolist(), strict=True):
                reasons[row] = REASONS[reason]
            lengths[part] = stop.lengths
            completions[part, : tokens.shape[1]], logprobs[part, : values.shape[1]] = tokens, values
        return completions, logprobs, lengths, reasons

    def _sample(
        self,
        policy: Policy,
        ids: Tensor,
        mask: Tensor,
        uniform: Tensor,
        forced: Tensor,
        sampling: SamplingParams,
        use_cache: bool,
    ) -> tuple[Tensor, Tensor, _Stop]:
        """(tokens, log-probs, the criterion that ended the rows)."""
        choose = _Choose(sampling, uniform, forced, ids.shape[1])
        stop = _Stop(Endings(policy, sampling, forced), ids.shape[1], len(ids), ids.device)
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            use_cache=use_cache,
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
        return output[:, ids.shape[1] :], torch.stack(choose.logprobs, 1), stop
