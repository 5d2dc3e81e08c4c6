"""Given completions as a batch, for scoring strings without a model or a rollout."""

from collections.abc import Sequence
from typing import Any

from rollouts import RolloutBatch, text_batch
from support.errors import ConfigError


def evaluation_batch(
    completions: Sequence[Any],
    prompts: Sequence[Any] | None,
    group_size: int,
    completion_ids: Sequence[Sequence[int]] | None,
    columns: dict[str, Sequence[Any]],
) -> RolloutBatch:
    """The batch of `Reward.evaluate`."""
    named = {"completions": completions, "prompts": prompts, "completion_ids": completion_ids, **columns}
    for name, values in named.items():
        if values is not None and (isinstance(values, (str, bytes)) or len(values) != len(completions)):
            kind = "a single text" if isinstance(values, (str, bytes)) else f"{len(values)} entries"
            raise ConfigError(
                f"evaluate got {kind} in {name!r} for {len(completions)} completions; give a list with one entry per "
                "completion."
            )
    if not completions or group_size < 1 or len(completions) % group_size:
        raise ConfigError(
            f"evaluate got {len(completions)} completions and group_size={group_size}; give one or more completions, "
            "and the same number of consecutive ones for every prompt."
        )
    places = range(0, len(completions), group_size)
    prompts = [""] * len(completions) if prompts is None else prompts
    rows = [
        {"id": str(number), "prompt": prompts[place]} | {name: values[place] for name, values in columns.items()}
        for number, place in enumerate(places)
    ]
    texts = [text if isinstance(text, str) else str(text[-1]["content"]) for text in completions]
    batch = text_batch(texts, rows, completion_ids)
    ends = [str(row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]) for row in rows]
    batch.decoder = lambda ids, mask: ends if ids is batch.prompt_ids else [""] * len(ids)
    return batch
