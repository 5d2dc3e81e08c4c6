"""Calibration data of quantisers: the policy's own reasoning traces, worked solutions, a file, or random tokens."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.rows import FORMATS, read_rows
from policies import Policy
from support.errors import ConfigError
from support.files import shipped
from support.seeding import derive_seed, run_seed

Rows = list[dict[str, Any]]


@dataclass
class Calibration:
    """The data on whose inputs methods choose scales and layer errors are measured.

    Args:
        source: traces (completions that the policy samples for training prompts), solutions (training prompts with the
            column of solutions), random (tokens drawn evenly from the vocabulary), or a file: rows with the column
            `text`, or a plain text.
        size: number of sequences.
        max_tokens: longest sequence; longer ones are cut.
        text: column of a file's rows.
    """

    source: str = "traces"
    size: int = 256
    max_tokens: int = 2048
    text: str = "text"

    def __post_init__(self) -> None:
        if self.size < 1 or self.max_tokens < 2:
            raise ConfigError(
                f"calibration.size is {self.size} and calibration.max_tokens {self.max_tokens}; set size to 1 or more "
                "and max_tokens to 2 or more."
            )


def training_rows(data: Any, size: int) -> Rows:
    """The first rows of the training split, whose prompts are not those of the test. Raises ConfigError."""
    if data is None or not hasattr(data, "rows"):
        raise ConfigError(
            "calibration needs training prompts, which a loader of a test does not have; use a data module of this "
            "project, or set model.calibration.source to a file or to random."
        )
    rows: Rows = data.rows("train")
    return rows[:size]


def written(policy: Policy, row: dict[str, Any], column: str) -> tuple[list[int], list[int]]:
    """Token ids of a row's prompt and of its solution with the end token. Raises ConfigError."""
    if not isinstance(text := row.get(column), str):
        raise ConfigError(
            f"row {row.get('id')!r} has no solution in the column {column!r}; its columns are {sorted(row)}. Set "
            "model.solutions to one of them, or to null to use the policy's own right completions."
        )
    completion: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return policy.encode(row["prompt"]), [*completion, policy.tokenizer.eos_token_id]


def given_sequences(policy: Policy, calibration: Calibration, solutions: str | None, data: Any) -> list[list[int]]:
    """Sequences of token ids of every source but traces.

    Raises:
        ConfigError: a file, a column or training rows are missing.
    """
    size, longest = calibration.size, calibration.max_tokens
    if policy.context is not None:
        longest = min(longest, policy.context)
    if calibration.source == "random":
        rng = random.Random(derive_seed("calibration", run_seed()))
        length = min(longest, 128)
        return [[rng.randrange(policy.vocabulary) for _ in range(length)] for _ in range(size)]
    if calibration.source == "solutions":
        if solutions is None:
            raise ConfigError("model.calibration.source is solutions, but model.solutions names no column; set it.")
        pairs = [written(policy, row, solutions) for row in training_rows(data, size)]
        return [(prompt + completion)[:longest] for prompt, completion in pairs]
    path = shipped(calibration.source)
    if any(path.name.endswith(ending) for ending in FORMATS) or path.is_dir():
        texts = [row.get(calibration.text) for row in read_rows(calibration.source)[:size]]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f"{calibration.source} has rows without the column {calibration.text!r}; set model.calibration.text."
            )
        return [encoded(policy, str(text))[:longest] for text in texts]
    if not path.is_file():
        raise ConfigError(
            f"model.calibration.source is {calibration.source!r}, which is not a file; it is traces, solutions, random "
            "or the name of a file."
        )
    tokens = encoded(policy, Path(path).read_text(encoding="utf-8"))
    length = min(longest, max(2, len(tokens) // size))
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)][:size]


def encoded(policy: Policy, text: str) -> list[int]:
    """Token ids of a text as it stands."""
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
