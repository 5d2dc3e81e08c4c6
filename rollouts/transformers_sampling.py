"""One call of transformers' `generate`: the tokens that the project draws, their log-probs, and why each row ended."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from policies import Policy
from rollouts.conversations import Sampled
from rollouts.engine import REASONS, Endings, draw, warpers
from rollouts.sampling import SamplingParams
from rollouts.turns import FinishReason


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

    Args:
        stops: by row, whether stop strings end it.

    Fields:
        reasons: (rows,), index in REASONS. lengths: (rows,), tokens of each completion.
    """

    def __init__(self, endings: Endings, prompt_width: int, stops: list[bool]) -> None:
        self.endings, self.prompt_width = endings, prompt_width
        self.eos_token_id = endings.end_tokens  # by this name `generate` knows that ended rows are padded
        self.stops = torch.tensor(stops, device=endings.end_tokens.device)
        self.rows = torch.arange(len(stops), device=self.stops.device)
        self.reasons, self.lengths = torch.zeros_like(self.rows), torch.zeros_like(self.rows)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Tensor:
        completions = input_ids[:, self.prompt_width :]
        lengths = torch.full_like(self.rows, completions.shape[1])
        live = self.reasons == 0
        self.lengths = torch.where(live, lengths, self.lengths)
        reasons = self.endings(completions, lengths, self.rows, stops=self.stops)
        self.reasons = torch.where(live, reasons, self.reasons)
        return self.reasons > 0


@dataclass
class Part:
    """Rows that were generated side by side.

    Fields:
        tokens, logprobs: padded on the right. lengths: tokens of each row. reasons: why each ended.
        cache: of transformers, if it was asked for: the columns of the input and of `tokens`, without the last.
    """

    tokens: Int[Tensor, "rows time"]
    logprobs: Float[Tensor, "rows time"]
    lengths: Int[Tensor, "rows"]
    reasons: list[FinishReason]
    cache: Any

    def turns(self) -> list[Sampled]:
        return [
            (self.tokens[row, :length].tolist(), self.logprobs[row, :length].tolist(), reason)
            for row, (length, reason) in enumerate(zip(self.lengths.tolist(), self.reasons, strict=True))
        ]


def sample_part(
    policy: Policy,
    ids: Int[Tensor, "rows input"],
    mask: Bool[Tensor, "rows input"],
    uniform: Float[Tensor, "rows time"],
    forced: Int[Tensor, "rows forced_time"],
    sampling: SamplingParams,
    use_cache: bool,
    stops: list[bool] | None = None,
    keep_cache: bool = False,
    cache: Any = None,
) -> Part:
    """Generate one completion of every row.

    Args:
        ids: the sequences so far. mask: False on their padding.
        uniform, forced: random numbers and forced tokens of the completions, from their first token.
        stops: by row, whether stop strings end it; all if None.
        keep_cache: return the cache, for going on. cache: of an earlier call, over the first columns of `ids`.
    """
    choose = _Choose(sampling, uniform, forced, ids.shape[1])
    stop = _Stop(Endings(policy, sampling.stop, forced), ids.shape[1], stops or [True] * len(ids))
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,
        use_cache=use_cache,
        return_dict_in_generate=keep_cache,
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
            **({} if cache is None else {"past_key_values": cache}),
        )
    finally:
        model.generation_config = model_config
    tokens = (output.sequences if keep_cache else output)[:, ids.shape[1] :]
    reasons = [REASONS[reason] for reason in stop.reasons.tolist()]
    values = torch.stack(choose.logprobs, 1)
    return Part(tokens, values, stop.lengths, reasons, output.past_key_values if keep_cache else None)
