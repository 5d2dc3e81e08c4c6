"""Conversion of rows in TRL's formats: texts or chat messages, in the columns of its trainers."""

from typing import Any

from datamodules.rows import Row
from support.errors import ConfigError

PAIR = "a text, or one message of the assistant"


def demonstration(row: Row) -> Row:
    """A row for supervised fine-tuning with `prompt` and `response`.

    Rows with `response` are returned as they are; TRL's `prompt` and `completion`, or `messages`, are converted.

    Raises:
        ConfigError: for messages that do not end with the assistant's, or a completion of several messages.
    """
    if "response" in row or not row.keys() & {"completion", "messages"}:
        return row
    others = {name: value for name, value in row.items() if name not in ("prompt", "completion", "messages")}
    if "completion" in row:
        return others | {"prompt": row.get("prompt"), "response": _text(row["completion"], row, "completion")}
    return others | {"prompt": row["messages"][:-1], "response": _text(row["messages"][-1:], row, "messages")}


def preference(row: Row) -> Row:
    """A pair with `prompt`, `response_0` (the chosen one), `response_1` and `better`.

    Without a `prompt`, the common first messages of both sides are the prompt.

    Raises:
        ConfigError: for sides that are not such texts or messages, or have no common prompt.
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None:
        dialogues = isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) >= 2
        if not dialogues or chosen[:-1] != rejected[:-1]:
            raise ConfigError(
                f"row {row.get('id')!r} has no `prompt`, so `chosen` and `rejected` must be lists of messages that "
                "share all but the last. Map the prompt's column in data.columns, or use format: hh for dialogues in "
                "one text."
            )
        prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    sides = {"response_0": _text(chosen, row, "chosen"), "response_1": _text(rejected, row, "rejected")}
    return {"id": row["id"], "prompt": prompt, **sides, "better": 0}


def labelled(row: Row) -> Row:
    """A single response with `prompt`, `response` and `desirable`, from TRL's `prompt`, `completion` and `label`.

    Without a `prompt`, the messages before the last one of `completion` are the prompt.

    Raises:
        ConfigError: for a label that is not true or false, or a completion that is neither a text nor such messages.
    """
    prompt, completion, label = row.get("prompt"), row["completion"], row["label"]
    if label not in (True, False):
        raise ConfigError(
            f"row {row.get('id')!r} has {label!r} as its label; it must be true or false. Correct or drop the row."
        )
    if prompt is None and isinstance(completion, list) and len(completion) > 1:
        prompt, completion = completion[:-1], completion[-1:]
    response = _text(completion, row, "completion")
    return {"id": row["id"], "prompt": prompt, "response": response, "desirable": bool(label)}


def _text(value: Any, row: Row, column: str) -> str:
    """The text of a completion."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        message = value[0]
        value = message.get("content") if message.get("role") == "assistant" else value
    if not isinstance(value, str):
        raise ConfigError(
            f"row {row.get('id')!r} has {str(value)[:80]!r} as the assistant's text in {column!r}; it must be {PAIR}. "
            "Correct or drop the row."
        )
    return value
