"""Engines generate completions and record the log-probs of the distribution that they sampled from."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from rollouts.batch import RolloutBatch
from rollouts.sampling import SamplingParams
from support.errors import ConfigError


class Engine(ABC):
    """The seam between methods and whatever generates."""

    @abstractmethod
    def generate(
        self, model: nn.Module, prompts: list[list[int]], rows: list[dict[str, Any]], group_size: int, sampling: SamplingParams
    ) -> RolloutBatch:
        """`group_size` completions of every prompt (token ids), prompt-major."""


class _RecordLogprobs(LogitsProcessor):
    """Warps the logits as asked and keeps, one step at a time, the log-probs of the tokens that were then chosen."""

    def __init__(self, sampling: SamplingParams) -> None:
        self.warpers = LogitsProcessorList()
        if sampling.temperature not in (0.0, 1.0):
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.temperature > 0 and sampling.top_k:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.temperature > 0 and sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))
        self.pending: Tensor | None = None
        self.chosen: list[Tensor] = []

    def record(self, tokens: Tensor) -> None:
        if self.pending is not None:
            self.chosen.append(self.pending.gather(1, tokens[:, None]).squeeze(1))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.record(input_ids[:, -1])
        warped = self.warpers(input_ids, scores.float())
        self.pending = warped.log_softmax(-1)
        return warped


class TransformersEngine(Engine):
    """`generate` of transformers.

    The model's own generation defaults (a repetition penalty, a top-p of its makers) are not used: they would change the
    sampling distribution without the policy's log-probs knowing.

    Args:
        eos_token_ids: any of these ends a completion.
        pad_token_id: fills the rest; may equal an end token.
        micro_batch: most completions generated at once; None generates all at once. Samples depend on it.
    """

    def __init__(self, eos_token_ids: list[int], pad_token_id: int, micro_batch: int | None = None) -> None:
        if not eos_token_ids:
            raise ConfigError("TransformersEngine needs at least one end token; take the tokenizer's eos_token_id.")
        self.eos_token_ids, self.pad_token_id, self.micro_batch = eos_token_ids, pad_token_id, micro_batch

    @torch.no_grad()
    def generate(self, model, prompts, rows, group_size, sampling):
        if not prompts or not all(prompts):
            raise ConfigError("a rollout needs a prompt, and every prompt a token; check the data set's prompt column.")
        context = getattr(model.config, "max_position_embeddings", None)
        longest = max(map(len, prompts))
        if context is not None and longest + sampling.max_new_tokens > context:
            raise ConfigError(
                f"a prompt of {longest} tokens plus sampling.max_new_tokens={sampling.max_new_tokens} exceeds the model's "
                f"context of {context} tokens; drop or shorten long prompts, or lower sampling.max_new_tokens."
            )
        device = next(model.parameters()).device
        ids = torch.full((len(prompts), longest), self.pad_token_id, device=device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[i, longest - len(prompt) :] = True
        was_training = model.training
        model.eval()
        try:
            all_ids, all_mask = ids.repeat_interleave(group_size, 0), mask.repeat_interleave(group_size, 0)
            step = self.micro_batch or len(all_ids)
            spans = [slice(i, i + step) for i in range(0, len(all_ids), step)]
            parts = [self._sample(model, all_ids[span], all_mask[span], sampling) for span in spans]
        finally:
            model.train(was_training)
        width = max(tokens.shape[1] for tokens, _ in parts)
        pad = torch.nn.functional.pad
        completions = torch.cat([pad(tokens, (0, width - tokens.shape[1]), value=self.pad_token_id) for tokens, _ in parts])
        logprobs = torch.cat([pad(values, (0, width - values.shape[1])) for _, values in parts])
        is_end = torch.isin(completions, torch.tensor(self.eos_token_ids, device=device))
        # A token is part of the completion while no end token stands before it: padding may be an end token itself.
        valid = is_end.long().cumsum(1) - is_end.long() == 0
        for row, (tokens, _) in enumerate(part for part in parts for _ in range(len(part[0]))):
            valid[row, tokens.shape[1] :] = False
        finished = (is_end & valid).any(1).tolist()
        return RolloutBatch(
            prompt_ids=ids,
            prompt_mask=mask,
            completion_ids=completions.masked_fill(~valid, self.pad_token_id),
            completion_mask=valid,
            action_mask=valid.clone(),
            behaviour_logprobs=logprobs.masked_fill(~valid, 0.0),
            finish_reasons=["eos" if done else "length" for done in finished],
            rows=rows,
        )

    def _sample(self, model: Any, ids: Tensor, mask: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
        recorder = _RecordLogprobs(sampling)
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
        )
        own, model.generation_config = model.generation_config, GenerationConfig()
        try:
            output = model.generate(
                input_ids=ids, attention_mask=mask.long(), generation_config=config, logits_processor=LogitsProcessorList([recorder])
            )
        finally:
            model.generation_config = own
        recorder.record(output[:, -1])
        return output[:, ids.shape[1] :], torch.stack(recorder.chosen, 1)
