"""Completions as plain records, which predictions and stored rollouts share and `cli.inspect` shows."""

import json
import math
from typing import Any

import torch

from rollouts.batch import RolloutBatch


def token_texts(batch: RolloutBatch) -> list[list[str]]:
    """The text of every completion token by itself; a token that is part of a character shows as U+FFFD."""
    assert batch.decoder is not None
    ids = batch.completion_ids.unique()
    # Decoded one by one: the end token has an empty text, and keeps its position.
    texts = dict(
        zip(ids.tolist(), batch.decoder(ids[:, None], torch.ones_like(ids[:, None], dtype=torch.bool)), strict=True)
    )
    return [
        [texts[token] for token in row[mask].tolist()]
        for row, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)
    ]


def number(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def completion_records(batch: RolloutBatch) -> list[dict[str, Any]]:
    """One dict per completion, in the batch's order.

    Keys: id, prompt (messages as JSON), completion, finish, length; reward/<name> of every reward, None where it does
    not apply; per token: tokens (their texts), logprobs under the distribution that was sampled from (0 on tokens that
    were not sampled), reference_logprobs if they are known; advantage, one number or one per token, if it is known.
    Completions that an environment took part in also have turn, the number of each token's turn (-1 on the
    environment's), and per turn turn_rewards (None without one) and turn_finish; environment/<name>, its numbers.
    """
    records = []
    texts, prompts, ids = token_texts(batch), batch.column("prompt"), batch.column("id")
    for row, mask in enumerate(batch.completion_mask):
        record: dict[str, Any] = {
            "id": ids[row],
            "prompt": prompts[row] if isinstance(prompts[row], str) else json.dumps(prompts[row], ensure_ascii=False),
            "completion": batch.completions[row],
            "finish": batch.finish_reasons[row],
            "length": int(mask.sum()),
        }
        record |= {f"reward/{name}": number(float(scores[row])) for name, scores in batch.rewards.items()}
        record |= {"tokens": texts[row], "logprobs": batch.behaviour_logprobs[row][mask].tolist()}
        if batch.reference_logprobs is not None:
            record["reference_logprobs"] = batch.reference_logprobs[row][mask].tolist()
        if (turns := batch.turns) is not None:
            reasons = turns.finish_reasons[row]
            record["turn"] = turns.number[row][mask].tolist()
            record["turn_rewards"] = [number(value) for value in turns.rewards[row, : len(reasons)].tolist()]
            record["turn_finish"] = list(reasons)
            record |= {f"environment/{name}": float(values[row]) for name, values in turns.values.items()}
        if batch.advantages is not None:
            advantage = batch.advantages[row]
            record["advantage"] = advantage.item() if advantage.dim() == 0 else advantage[mask].tolist()
        records.append(record)
    return records
