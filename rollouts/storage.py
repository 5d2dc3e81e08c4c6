"""Rollouts as Parquet files, and back.

A file has one row per completion: the keys of rollouts/completion_records.py for people, and the columns from which the
batch is restored: prompt_ids, completion_ids, actions (False where a token was not the policy's choice), and the data
row as JSON. The order is the batch's, so the completions of a prompt follow one another. Numbers are float32, as in
training.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from rollouts.batch import RolloutBatch
from rollouts.completion_records import completion_records
from rollouts.turns import Turns
from support.errors import ConfigError

#: metadata key of the facts about the file
ABOUT = b"rollout"
FLOATS = pyarrow.list_(pyarrow.float32())
#: columns of lists that are no floating-point numbers
OTHER_LISTS = ("tokens", "turn", "turn_finish")


def write_rollout(batch: RolloutBatch, path: Path, about: dict[str, Any] | None = None) -> None:
    """Write a batch; after a crash the file is complete or absent.

    Args:
        about: plain facts kept in the file, e.g. the rollout's number.
    """
    rows, columns = completion_records(batch), {}
    masks = batch.completion_mask
    for name in rows[0]:
        values = [row[name] for row in rows]
        column_type = None  # pyarrow's choice
        if isinstance(values[0], list) and name not in OTHER_LISTS:
            column_type = FLOATS
        elif name.startswith(("reward/", "environment/", "advantage")):
            column_type = pyarrow.float32()
        columns[name] = pyarrow.array([str(value) for value in values] if name == "id" else values, column_type)
    data_rows = [json.dumps(row, ensure_ascii=False, default=str) for row in batch.rows]
    prompt_ids = [ids[mask].tolist() for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    columns |= {
        "row": [row for row in data_rows for _ in range(batch.group_size)],
        "prompt_ids": [ids for ids in prompt_ids for _ in range(batch.group_size)],
        "completion_ids": [ids[mask].tolist() for ids, mask in zip(batch.completion_ids, masks, strict=True)],
        "actions": [actions[mask].tolist() for actions, mask in zip(batch.action_mask, masks, strict=True)],
    }
    if batch.own_first is not None:
        columns["own_first"] = batch.own_first.tolist()
    if batch.turns is not None:
        columns["message_start"] = batch.turns.message_start.tolist()
    facts = {"group_size": batch.group_size, **(about or {})}
    table = pyarrow.table(columns).replace_schema_metadata({ABOUT: json.dumps(facts).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    pyarrow.parquet.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def read_rollout(
    path: str | Path, pad: int = 0, decoder: Callable[[Tensor, Tensor], list[str]] | None = None
) -> RolloutBatch:
    """Restore the batch that a file was written from, on the CPU, with its rewards, advantages and reference log-probs.

    A module's `advantages(batch)`, or any advantage of objectives/, can be computed from it again. That needs no
    weights, unless the reward contains a KL penalty whose log-probs were not recorded.

    Args:
        pad: id that fills the padding.
        decoder: (ids, mask) -> texts, such as `policy.decode`; without one the recorded texts are used.

    Raises:
        ConfigError: for a file that is not a recorded rollout.
    """
    faults = (OSError, KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError, RecursionError)
    try:
        table = pyarrow.parquet.read_table(path)
        facts = json.loads((table.schema.metadata or {})[ABOUT])
        return _restored(table.to_pydict(), int(facts["group_size"]), pad, decoder)
    except (*faults, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"{path} is not a rollout that callbacks.RolloutRecorder wrote ({type(error).__name__}: "
            f"{str(error)[:200]}); give the path of a Parquet file in a run's rollouts folder."
        ) from error


def _restored(
    columns: dict[str, list[Any]], size: int, pad: int, decoder: Callable[[Tensor, Tensor], list[str]] | None
) -> RolloutBatch:
    """The batch of a file's columns.

    Args:
        columns: by name, one entry per completion. size: completions per prompt.
    """
    completions = columns["completion_ids"]
    lengths = torch.tensor([len(ids) for ids in completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]

    def by_token(name: str, dtype: torch.dtype, fill: Any = 0) -> Tensor:
        flat = torch.tensor([value for values in columns[name] for value in values], dtype=dtype)
        return torch.full(mask.shape, fill, dtype=dtype).masked_scatter(mask, flat)

    prompts = columns["prompt_ids"][::size]
    longest = max(map(len, prompts))
    recorded, advantages = columns.get("advantage"), None
    if recorded is not None:
        of_tokens = isinstance(recorded[0], list)
        advantages = by_token("advantage", torch.float32) if of_tokens else torch.tensor(recorded)
    rewards = {name.removeprefix("reward/"): values for name, values in columns.items() if name.startswith("reward/")}
    return RolloutBatch(
        prompt_ids=torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts]),
        prompt_mask=torch.arange(longest) >= longest - torch.tensor([len(ids) for ids in prompts])[:, None],
        completion_ids=by_token("completion_ids", torch.long, pad),
        completion_mask=mask,
        action_mask=by_token("actions", torch.bool, False),
        behaviour_logprobs=by_token("logprobs", torch.float32),
        finish_reasons=columns["finish"],
        rows=[json.loads(row) for row in columns["row"][::size]],
        rewards={
            name: torch.tensor([math.nan if value is None else value for value in values])
            for name, values in rewards.items()
        },
        advantages=advantages,
        reference_logprobs=by_token("reference_logprobs", torch.float32) if "reference_logprobs" in columns else None,
        own_first=torch.tensor(columns["own_first"]) if "own_first" in columns else None,
        turns=_turns(columns, by_token("turn", torch.long, -1)) if "turn" in columns else None,
        decoder=decoder,
        _completions=None if decoder is not None else columns["completion"],
    )


def _turns(columns: dict[str, list[Any]], turn_of_token: Tensor) -> Turns:
    """The turns of a file's columns."""
    longest = max(map(len, columns["turn_finish"]))
    rewards = [
        [math.nan if value is None else value for value in values] + [math.nan] * (longest - len(values))
        for values in columns["turn_rewards"]
    ]
    values = {
        name.removeprefix("environment/"): torch.tensor(numbers)
        for name, numbers in columns.items()
        if name.startswith("environment/")
    }
    start = torch.tensor(columns["message_start"])
    return Turns(turn_of_token, torch.tensor(rewards), columns["turn_finish"], values, start)
