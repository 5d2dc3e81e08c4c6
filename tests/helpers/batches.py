"""A rollout made of texts, for rewards that read nothing else."""

from typing import Any

import torch

from rollouts import RolloutBatch


def batch_of_texts(texts: list[str], opened: bool = False, **row: Any) -> RolloutBatch:
    """Completions of one prompt, with one token each.

    Args:
        opened: whether the prompt ends with an open <think>.
        row: further columns of the prompt's data row.
    """
    ids = torch.zeros(len(texts), 1, dtype=torch.long)
    batch = RolloutBatch(
        prompt_ids=ids[:1],
        prompt_mask=ids[:1] == 0,
        completion_ids=ids,
        completion_mask=ids == 0,
        action_mask=ids == 0,
        behaviour_logprobs=ids.float(),
        finish_reasons=["eos"] * len(texts),
        rows=[{"id": "1", "prompt": "?"} | row],
        decoder=lambda ids, mask: ["<think>" if opened else ""] * len(ids),
    )
    batch._completions = texts
    return batch
