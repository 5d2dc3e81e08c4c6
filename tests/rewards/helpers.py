"""A batch of given lengths and scores, for rewards that read nothing else."""

import torch

from rollouts import RolloutBatch


def batch_of(lengths, right, prompts=1, ids=None, name="exact_answer", token_ids=None):
    """Completions of these lengths; `right` are the scores of the reward called `name`."""
    rows, time = len(lengths), max(lengths) + 2  # padding that must not count
    mask = torch.arange(time)[None] < torch.tensor(lengths)[:, None]
    tokens = torch.arange(time).repeat(rows, 1)
    for row, given in enumerate(token_ids or []):
        tokens[row, : len(given)] = torch.tensor(given)
    prompt = torch.zeros(prompts, 1, dtype=torch.long)
    return RolloutBatch(
        prompt, prompt == 0, tokens, mask, mask, torch.zeros(rows, time), ["eos"] * rows,
        [{"id": f"p{i}" if ids is None else ids[i], "prompt": "?"} for i in range(prompts)],
        rewards={name: torch.tensor(right, dtype=torch.float32)},
    )  # fmt: skip
