"""Completions from given texts, as a batch that rewards can score."""

from collections.abc import Sequence
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


def text_batch(
    texts: Sequence[str], rows: Sequence[dict[str, Any]], completion_ids: Sequence[Sequence[int]] | None = None
) -> RolloutBatch:
    """A batch of texts without a policy, for rewards; there are no prompt tokens, and all log-probs are 0.

    Args:
        texts: the completions, prompt-major, the same number for every data row.
        rows: the data row of every prompt.
        completion_ids: token ids of every completion, for rewards that read tokens or lengths; by default a completion
            has as many tokens as characters.
    """
    ids = (
        [list(range(len(text))) for text in texts] if completion_ids is None else [list(row) for row in completion_ids]
    )
    lengths = torch.tensor([len(row) for row in ids])
    width = max(1, int(lengths.max()))
    mask = torch.arange(width) < lengths[:, None]
    prompt = torch.zeros(len(rows), 1, dtype=torch.long)
    return RolloutBatch(
        prompt_ids=prompt,
        prompt_mask=prompt == 0,
        completion_ids=torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        completion_mask=mask,
        action_mask=mask,
        behaviour_logprobs=torch.zeros(len(texts), width),
        finish_reasons=["eos"] * len(texts),
        rows=list(rows),
        decoder=lambda ids, mask: [""] * len(ids),
        _completions=list(texts),
    )
