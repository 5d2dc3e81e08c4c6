"""A batch of given lengths and scores, for rewards that read nothing else; and a paper's configuration, made small."""

from pathlib import Path

import torch

from main import main
from rollouts import RolloutBatch

ROOT = Path(__file__).resolve().parents[2]


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


def run_config(names, model, *arguments, **changes):
    """`main.py fit` with these files of configs/, two prompts of four completions and no validation."""
    small = {
        "model.policy.model": model,
        "model.batch.prompts_per_rollout": 2,
        "model.batch.group_size": 4,
        "model.sampling.max_new_tokens": 8,
        "data.train_size": 8,
        "data.val_size": 2,
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.logger": "false",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
    } | changes
    return main(
        [
            "fit",
            *(f"--config={ROOT}/configs/{name}.yaml" for name in names),
            *arguments,
            *(f"--{k}={v}" for k, v in small.items()),
        ]
    )
