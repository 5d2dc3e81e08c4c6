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
from rollouts.batch import FinishReason, RolloutBatch
from rollouts.sampling import SamplingParams
from support.errors import ConfigError
from support.seeding import derive_seed

Prompts = list[list[int]]
DRAWN = 2**20  # most logits that tokens are drawn from at once
Forced = list[list[int]] | None


class Engine(ABC):
    """The seam between methods and whatever generates."""

    def matches(self, policy: Policy) -> bool:
        """Whether recorded log-probs are the policy's own up to rounding in float32, so that they serve as behaviour log-probs as they are."""
        return False

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
    ) -> RolloutBatch:
        """`group_size` completions of every prompt (token ids), prompt-major.

        What is drawn depends on torch's generator as it stands.

        Args:
            rows: the data row of each prompt.
            forced: first tokens of every completion, given and not sampled: False in the action mask, log-prob 0. Empty lists allowed.
            rows_at_once: most completions generated side by side; None sets no limit.
        """


def full_precision(policy: Policy) -> bool:
    """Whether the policy computes in float32 here and now."""
    return next(policy.model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(policy.device.type)


def check_prompts(policy: Policy, prompts: Prompts, sampling: SamplingParams) -> None:
    """Raises ConfigError for a prompt that is empty or leaves no room for a completion in the model's context."""
    if not prompts or not all(prompts):
        raise ConfigError("a rollout needs a prompt, and every prompt a token; check the data set's prompt column.")
    longest = max(map(len, prompts))
    if policy.context is not None and longest + sampling.max_new_tokens > policy.context:
        raise ConfigError(
            f"a prompt of {longest} tokens plus sampling.max_new_tokens={sampling.max_new_tokens} exceeds the model's "
            f"context of {policy.context} tokens; drop or shorten long prompts, or lower sampling.max_new_tokens."
        )


def uniforms(
    rows: list[dict[str, Any]], group_size: int, time: int, device: torch.device
) -> Float[Tensor, "rows time"]:
    """Numbers in [0, 1) that decide every token. They belong to (the generator's state at the call, the prompt's `id`, the completion, the step), so
    that a completion depends neither on the prompts beside it nor on the process that draws it.

    Args:
        rows: the data rows; of equal ids each gets numbers of its own.
    """
    call, seen, found = int(torch.randint(2**62, ())), Counter[str](), []
    for row in rows:
        key = str(row.get("id"))
        generator = torch.Generator().manual_seed(derive_seed(call, key, seen[key]))
        seen[key] += 1
        found.append(torch.rand(group_size, time, generator=generator))
    return torch.cat(found).to(device)


def padded_left(prompts: Prompts, pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), each (prompts, longest)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]


def padded_forced(forced: Forced, rows: int, device: torch.device) -> Tensor:
    """(rows, longest), -1 where nothing is forced."""
    forced = forced or [[]] * rows
    if len(forced) != rows:
        raise ValueError(f"forced has {len(forced)} entries for {rows} completions.")
    longest = max(map(len, forced))
    return torch.tensor(
        [given + [-1] * (longest - len(given)) for given in forced], dtype=torch.long, device=device
    ).view(rows, longest)


def warpers(sampling: SamplingParams) -> LogitsProcessorList:
    """What turns logits into those that are sampled from."""
    found = LogitsProcessorList()
    if sampling.temperature not in (0.0, 1.0):
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.temperature > 0 and sampling.top_k:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.temperature > 0 and sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    return found


def draw(
    logits: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, "rows"], greedy: bool
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """(tokens, log-probs): the distribution function inverted at the random numbers, or the likeliest tokens."""
    rows = max(1, DRAWN // logits.shape[1])
    if len(logits) > rows:  # few at a time: what follows needs several copies
        parts = [draw(logits[i : i + rows], uniform[i : i + rows], greedy) for i in range(0, len(logits), rows)]
        return torch.cat([tokens for tokens, _ in parts]), torch.cat([values for _, values in parts])
    logprobs = logits - logits.logsumexp(1, keepdim=True)
    if greedy:
        tokens = logits.argmax(1, keepdim=True)
    else:
        below = logprobs.exp().cumsum(1)
        # Less than the whole sum, and beyond every token without probability before the one that is chosen.
        tokens = torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True).clamp(max=below.shape[1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]


class StopStrings:
    """Tells which completions end with one of the strings, by transformers' matcher over tokens.

    Args:
        strings: may be none, then nothing ends.
    """

    def __init__(self, policy: Policy, strings: list[str]) -> None:
        self.criteria = StopStringCriteria(policy.tokenizer, strings) if strings else None
        self.reach = self.criteria.maximum_token_len if self.criteria else 0

    def __call__(self, ids: Int[Tensor, "rows time"], lengths: Int[Tensor, "rows"]) -> Bool[Tensor, "rows"]:
        """Which of the first `lengths` tokens of the rows end with a string."""
        if self.criteria is None:
            return torch.zeros_like(lengths, dtype=torch.bool)
        places = lengths[:, None] - torch.arange(self.reach, 0, -1, device=ids.device)
        no_token = torch.iinfo(ids.dtype).max  # matches no string
        tail = torch.where(places >= 0, ids.gather(1, places.clamp(min=0)), no_token)
        ended: Tensor = self.criteria(tail, None)
        return ended


def assemble(
    policy: Policy,
    prompts: Prompts,
    rows: list[dict[str, Any]],
    completions: Tensor,
    logprobs: Tensor,
    lengths: Tensor,
    forced: Tensor,
    reasons: list[FinishReason],
) -> RolloutBatch:
    """The batch, with padding and forced tokens masked.

    Args:
        completions, logprobs: (rows, time), anything behind a row's length. lengths: (rows,). forced: as from padded_forced.
    """
    width = int(lengths.max())
    steps = torch.arange(width, device=completions.device)
    mask = steps < lengths[:, None]
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
        decoder=policy.decode,
    )
