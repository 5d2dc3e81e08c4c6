"""Completions as plain records: what predictions and stored rollouts have in common, and what `cli.inspect` shows."""

import json
import math
from typing import Any

import torch

from rollouts.batch import RolloutBatch


def token_texts(batch: RolloutBatch) -> list[list[str]]:
    """The text of every completion token by itself; pieces of one character show as its replacement."""
    assert batch.decoder is not None
    ids = batch.completion_ids.unique()
    # Each by itself: the end token has none, and keeps its place.
    texts = dict(
        zip(ids.tolist(), batch.decoder(ids[:, None], torch.ones_like(ids[:, None], dtype=torch.bool)), strict=True)
    )
    return [
        [texts[token] for token in row[mask].tolist()]
        for row, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)
    ]


def number(value: float) -> float | None:
    """None in place of NaN, which JSON does not know."""
    return None if math.isnan(value) else value


def completion_records(batch: RolloutBatch) -> list[dict[str, Any]]:
    """One dict a completion, in the batch's order.

    Keys: id, prompt (messages as JSON), completion, finish, length; reward/<name> of every reward, None where it does not apply; by token: tokens (their texts),
    logprobs of the distribution that was sampled from (0 on tokens that were not sampled), reference_logprobs if they are known; advantage, one number or one
    a token, if it is known.
    """
    found = []
    texts, prompts, ids = token_texts(batch), batch.column("prompt"), batch.column("id")
    for row, mask in enumerate(batch.completion_mask):
        one: dict[str, Any] = {
            "id": ids[row],
            "prompt": prompts[row] if isinstance(prompts[row], str) else json.dumps(prompts[row], ensure_ascii=False),
            "completion": batch.completions[row],
            "finish": batch.finish_reasons[row],
            "length": int(mask.sum()),
        }
        one |= {f"reward/{name}": number(float(scores[row])) for name, scores in batch.rewards.items()}
        one |= {"tokens": texts[row], "logprobs": batch.behaviour_logprobs[row][mask].tolist()}
        if batch.reference_logprobs is not None:
            one["reference_logprobs"] = batch.reference_logprobs[row][mask].tolist()
        if batch.advantages is not None:
            one["advantage"] = (
                batch.advantages[row].item() if batch.advantages.dim() == 1 else batch.advantages[row][mask].tolist()
            )
        found.append(one)
    return found
