"""Rows in TRL's formats: texts or chat messages, in the columns that its trainers take."""

from typing import Any

from datamodules.rows import Row
from support.errors import ConfigError

PAIR = "a text, or one message of the assistant"


def demonstration(row: Row) -> Row:
    """A row for supervised fine-tuning with `prompt` and `response`: as it is, or from TRL's `prompt` and `completion`, or `messages`.

    Raises:
        ConfigError: for messages that do not end with the assistant's, or a completion of several.
    """
    if "response" in row or not row.keys() & {"completion", "messages"}:
        return row
    others = {name: value for name, value in row.items() if name not in ("prompt", "completion", "messages")}
    if "completion" in row:
        return others | {"prompt": row.get("prompt"), "response": _said(row["completion"], row, "completion")}
    return others | {"prompt": row["messages"][:-1], "response": _said(row["messages"][-1:], row, "messages")}


def preference(row: Row) -> Row:
    """A pair with `prompt`, `response_0` (the chosen one), `response_1` and `better`; without a `prompt` both sides hold it as their common messages.

    Raises:
        ConfigError: for sides that are no such texts or messages, or share no prompt.
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        if (
            not isinstance(chosen, list)
            or not isinstance(rejected, list)
            or len(chosen) < 2
            or chosen[:-1] != rejected[:-1]
        ):
            raise ConfigError(
                f"row {row.get('id')!r} has no `prompt`, so `chosen` and `rejected` must be lists of messages that share all but the last; name the prompt's "
                "column in data.columns, or use format: hh for dialogues in one text."
            )
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    sides = {"response_0": _said(chosen, row, "chosen"), "response_1": _said(rejected, row, "rejected")}
    return {"id": row["id"], "prompt": prompt, **sides, "better": 0}


def _said(value: Any, row: Row, column: str) -> str:
    """The text of a completion."""
    if (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], dict)
        and value[0].get("role") == "assistant"
    ):
        value = value[0].get("content")
    if not isinstance(value, str):
        raise ConfigError(
            f"row {row.get('id')!r} holds {str(value)[:80]!r} as what the assistant says in {column!r}; it must be {PAIR}."
        )
    return value
