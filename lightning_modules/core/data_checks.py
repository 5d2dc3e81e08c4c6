"""Checks of the data before anything is sampled."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from rewards import Reward
from rewards.self_check import report_golds
from support.errors import ConfigError

Rows = list[dict[str, Any]]
#: splits of the data module that a stage reads
SPLITS = {"fit": ("train", "val", "safety"), "validate": ("val",), "test": ("test", "safety"), "predict": ("val",)}


def data_splits(trainer: L.Trainer, stage: str) -> dict[str, Rows]:
    """The rows that a stage reads, by split; empty for data modules without a method `rows`."""
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "rows"):
        return {}
    return {split: data.rows(split) for split in SPLITS[stage]}


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


def check_lengths(
    splits: Mapping[str, Rows],
    context: int | None,
    max_new_tokens: int,
    prompt_tokens: Callable[[dict[str, Any]], list[int]],
) -> None:
    """Refuse prompts that leave no room for a completion.

    Args:
        context: the model's context length, in tokens; None for no limit.
        prompt_tokens: token ids of a row's prompt.

    Raises:
        ConfigError: names the prompt, its split and its length.
    """
    if context is None:
        return
    room = context - max_new_tokens
    for split, rows in splits.items():
        for row in rows:
            # A token has at least one byte, so short prompts fit without being encoded.
            if len(str(row["prompt"]).encode()) + 256 > room and (length := len(prompt_tokens(row))) > room:
                raise ConfigError(
                    f"prompt {row.get('id')!r} of the {split} split has {length} tokens; with "
                    f"sampling.max_new_tokens={max_new_tokens} it exceeds the model's context of {context} tokens. "
                    "Remove or shorten the prompt, or lower sampling.max_new_tokens."
                )
