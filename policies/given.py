"""Log-probs of given completions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policies.config_checks import check_length
from policies.packing import PromptGroups
from policies.prompt_encoding import Prompt
from support.errors import ConfigError


@torch.no_grad()
def score_completions(
    policy: Any,
    prompts: list[Prompt],
    completions: list[str],
    *,
    temperature: float = 1.0,
    ended: bool = True,
    reference: bool = False,
    rows_at_once: int = 16,
) -> list[Float[Tensor, "tokens"]]:
    """Log-probs of the tokens of given completions, one tensor per completion.

    Args:
        prompts: text or messages of each completion.
        completions: texts, encoded as they stand.
        temperature: divisor of the logits.
        ended: whether the end token follows each completion; its log-prob is then the last one.
        reference: use the reference instead of the policy.
        rows_at_once: completions per forward pass.

    Raises:
        ConfigError: for different numbers of prompts and completions, or a sequence beyond the model's context.
    """
    if len(prompts) != len(completions):
        raise ConfigError(
            f"score got {len(prompts)} prompts and {len(completions)} completions; give one prompt per completion."
        )
    end = [policy.tokenizer.eos_token_id] if ended else []
    scored: list[Tensor] = []
    for start in range(0, len(prompts), rows_at_once):
        ids = [policy.encode(prompt) for prompt in prompts[start : start + rows_at_once]]
        answers = [
            [*policy.tokenizer(text, add_special_tokens=False)["input_ids"], *end]
            for text in completions[start : start + rows_at_once]
        ]
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(ids, answers, strict=True))
        check_length(policy.bare.config, longest, "a prompt with its completion")
        groups = PromptGroups.of(ids, answers, policy.pad_token_id, policy.device)
        if reference:
            values = policy.reference_logprobs(groups, temperature)
        else:
            values = policy.logprobs(groups, temperature)[0]
        scored += [row[: len(answer)].float().cpu() for row, answer in zip(values, answers, strict=True)]
    return scored
