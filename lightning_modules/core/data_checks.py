"""Checks of the data before anything is sampled."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.rows import check_rows
from policies.prompt_encoding import begun_turn
from rewards import Reward
from rewards.self_check import report_golds
from support.errors import ConfigError
from support.prompt_identity import split_fingerprint

Rows = list[dict[str, Any]]
#: splits of the data module that a stage reads
SPLITS = {"fit": ("train", "val", "safety"), "validate": ("val",), "test": ("test", "safety"), "predict": ("val",)}


def data_splits(trainer: L.Trainer, stage: str) -> dict[str, Rows]:
    """The rows that a stage samples, by split; empty for data modules without a method `rows`."""
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "rows"):
        return {}
    # Training rows with responses are learned as they are; nothing is sampled for them.
    learned = {"train"} if hasattr(data, "train_data") else set()
    return {split: data.rows(split) for split in SPLITS[stage] if split not in learned}


def rows_of(batch: Any, rewards: Sequence[Reward], checked: bool) -> Rows:
    """The data rows of a loader's batch, whatever collated it.

    Args:
        batch: a list of rows; a list of prompts; or a dict of columns, as the default collate function makes it.
        rewards: rewards whose columns every row must have.
        checked: whether the data module's rows were checked before, so that nothing is left to check.

    Raises:
        ConfigError: for a batch of another kind, or a row that lacks a prompt or a column.
    """
    if isinstance(batch, Mapping):
        columns = {name: _column(values) for name, values in batch.items()}
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) != 1:
            raise ConfigError(
                f"the columns of the loader's batch have different lengths, {sizes}; give one entry each."
            )
        batch = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if checked:
        return list(batch)
    if isinstance(batch, (list, tuple)) and all(isinstance(prompt, str) for prompt in batch):
        batch = [{"prompt": prompt} for prompt in batch]
    if not isinstance(batch, (list, tuple)) or not batch or not all(isinstance(row, Mapping) for row in batch):
        raise ConfigError(
            f"the loader's batch is a {type(batch).__name__}; it must be a list of data rows (dicts with a `prompt`), "
            "a list of prompts, or a dict of columns. Give the loader collate_fn=list."
        )
    rows = check_rows([dict(row) for row in batch], "the loader's batch", default_ids=False)
    for row in rows:
        # Draws belong to a row's id; two batches' first rows must not share theirs.
        row.setdefault("id", split_fingerprint([row["prompt"]])[:16])
    check_columns({"loader": rows}, rewards)
    return rows


def prompts_of_batch(batch: Any) -> list[Any]:
    """The prompts of a loader's batch, whatever collated it; empty for a batch that is no rows with prompts."""
    try:
        return [row["prompt"] for row in rows_of(batch, [], checked=False)]
    except (ConfigError, TypeError, ValueError):
        return []


def _column(values: Any) -> list[Any]:
    """The entries of one column, tensors as numbers, and chat messages that were collated by position put together."""
    if hasattr(values, "tolist"):
        entries: list[Any] = values.tolist()
        return entries
    if values and all(isinstance(part, Mapping) for part in values):
        messages = [[dict(zip(part, one, strict=True)) for one in zip(*part.values(), strict=True)] for part in values]
        return [list(prompt) for prompt in zip(*messages, strict=True)]
    return list(values)


def check_prompt_count(rows: Rows, prompts_per_rollout: int, processes: int) -> None:
    """Refuse a training batch that does not have the batch plan's number of prompts. Raises ConfigError."""
    if len(rows) * processes != prompts_per_rollout:
        several = f" on each of {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"the training loader gave {len(rows)} prompts{several}, but batch.prompts_per_rollout is "
            f"{prompts_per_rollout}; set the loader's batch_size to {prompts_per_rollout // processes} with "
            "drop_last=True, or change batch.prompts_per_rollout."
        )


def check_columns(splits: Mapping[str, Rows], rewards: Sequence[Reward]) -> None:
    """Refuse rows that lack a column which a reward reads; safety prompts have no answers.

    Raises:
        ConfigError: names the row, the reward and the column.
    """
    for row in [row for split, rows in splits.items() if split != "safety" for row in rows]:
        for reward in rewards:
            reward.check_columns(row)


def check_golds(splits: Mapping[str, Rows], rewards: Sequence[Reward]) -> None:
    """Warn about rows whose own answer does not earn the full reward; safety prompts have no answers.

    Raises:
        ConfigError: if no row's answer earns it.
    """
    rows = [row for split, rows in splits.items() if split != "safety" for row in rows]
    for reward in rewards:
        if (paragraph := report_golds(reward, rows)) is not None:
            rank_zero_warn(paragraph)


def has_columns(reward: Reward, rows: Rows) -> bool:
    """Whether every row has the columns that a reward reads."""
    try:
        for row in rows:
            reward.check_columns(row)
    except ConfigError:
        return False
    return True


def check_prompts(
    splits: Mapping[str, Rows],
    context: tuple[int | None, str],
    max_new_tokens: int,
    prompt_tokens: Callable[[dict[str, Any]], list[int]],
) -> None:
    """Refuse prompts that leave no room for a completion, or that a method cannot continue.

    Args:
        context: as from context_of of the model's configuration.
        prompt_tokens: token ids of a row's prompt.

    Raises:
        ConfigError: names the prompt, its split and its length.
    """
    limit, remark = context
    room = math.inf if limit is None else limit - max_new_tokens
    for split, rows in splits.items():
        for row in rows:
            # A token has at least one byte, so short prompts fit without being encoded.
            if len(str(row["prompt"]).encode()) + 256 <= room and not begun_turn(row["prompt"]):
                continue
            if (length := len(prompt_tokens(row))) > room:
                raise ConfigError(
                    f"prompt {row.get('id')!r} of the {split} split has {length} tokens; with "
                    f"sampling.max_new_tokens={max_new_tokens} it exceeds the model's context of {limit} tokens"
                    f"{remark}. Remove or shorten the prompt, or lower sampling.max_new_tokens."
                )
