"""Completions from given texts, as a batch that rewards can score."""

from typing import Any

import torch

from policies import Policy
from rollouts.batch import RolloutBatch
from rollouts.engine import Prompts, assemble, padded_forced


def written(policy: Policy, prompts: Prompts, rows: list[dict[str, Any]], texts: list[str]) -> RolloutBatch:
    """A batch of given texts, each followed by the end token; no token is an action, and all log-probs are 0.

    Args:
        prompts: token ids of each row's prompt. texts: the same number for every prompt, prompt-major.
    """
    completions = [
        [*policy.tokenizer(text, add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id]
        for text in texts
    ]
    forced = padded_forced(completions, len(completions), policy.device)
    lengths = torch.tensor([len(completion) for completion in completions], device=policy.device)
    return assemble(
        policy,
        prompts,
        rows,
        forced,
        torch.zeros(forced.shape, device=policy.device),
        lengths,
        forced,
        ["eos"] * len(texts),
    )
