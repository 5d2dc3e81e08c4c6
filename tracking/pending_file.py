"""Files of writes that wait for MLflow: one JSON value per line, a head and then the writes in their order.

The head holds the store's address (`tracking_uri`), the tags of runs that the store does not know yet (`runs`), and the
store's ids of runs that began without it (`real`). A write is a list of a method, its arguments and its keywords.
"""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag

from support.errors import ConfigError
from support.files import atomic_write_text, parse_json
from tracking.run_records import RECORDS

#: the methods of MLflow's client that a training writes with, except log_figure, which is kept as log_artifact
CLIENT_METHODS = ("log_batch", "log_metric", "log_param", "set_tag", "log_artifact", "set_terminated")
#: the method of a write of tracking/run_records.py; its arguments are the run, the kind and the facts
RECORD = "record"
#: MLflow's classes that arguments may contain, with the fields that they are made from
ENTITIES = {
    "Metric": (Metric, ("key", "value", "timestamp", "step")),
    "Param": (Param, ("key", "value")),
    "RunTag": (RunTag, ("key", "value")),
}
Write = tuple[str, list[Any], dict[str, Any]]


@dataclass
class Pending:
    """The content of a file.

    Fields:
        tracking_uri: address of the store. writes: (method, arguments, keywords), oldest first.
        runs: tags by the temporary id of a run that the store does not know yet.
        run_ids: the store's id by the temporary id of a run that began without the store.
    """

    tracking_uri: str
    writes: list[Write]
    runs: dict[str, dict[str, str]]
    run_ids: dict[str, str]


def write_pending(path: Path, pending: Pending) -> None:
    """Write the file atomically."""
    head = {"tracking_uri": pending.tracking_uri, "runs": pending.runs, "real": pending.run_ids}
    lines: list[Any] = [head]
    for method, arguments, keywords in pending.writes:
        lines.append([method, _plain(arguments), {name: _plain(value) for name, value in keywords.items()}])
    atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_pending(path: Path) -> Pending:
    """Read a file, and check that it asks for nothing but the writes of a training.

    Raises:
        ConfigError: the file is missing or damaged, or names another method of MLflow's client or another record.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}: {error}); name a file of the folder runs/pending."
        ) from error
    lines = deque(enumerate(text.splitlines(), start=1))
    number = 1
    try:
        number, line = lines.popleft()
        head = parse_json(line)
        pending = Pending(str(head["tracking_uri"]), [], dict(head["runs"]), dict(head["real"]))
        for number, line in lines:
            method, arguments, keywords = parse_json(line)
            _check(method, arguments, f"{path}, line {number}")
            restored = {str(name): _restored(value) for name, value in keywords.items()}
            pending.writes.append((method, _restored(arguments), restored))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        advice = "Delete that line to send the rest" if number > 1 else "Without its first line it cannot be sent"
        raise ConfigError(
            f"{path} is damaged: line {number} is not what a training writes ({type(error).__name__}: {error}), so "
            f"nothing of the file was sent. {advice}."
        ) from error
    return pending


def _check(method: Any, arguments: Any, place: str) -> None:
    """Refuse a write that a training never makes, since its method would be called on MLflow's client."""
    if method not in (*CLIENT_METHODS, RECORD):
        raise ConfigError(
            f"{place}, asks for {method!r}, which a training never writes (allowed are {', '.join(CLIENT_METHODS)} and "
            f"{RECORD}); nothing of the file was sent. Do not send files from a source that you do not trust."
        )
    if not isinstance(arguments, list) or not arguments or not isinstance(arguments[0], str):
        raise TypeError("its arguments do not start with the id of a run")
    if method == RECORD and (len(arguments) != 3 or arguments[1] not in RECORDS):
        raise ConfigError(
            f"{place}, asks for a record of the kind {arguments[1:2]}, which a training never writes (allowed are "
            f"{', '.join(RECORDS)}); nothing of the file was sent. Do not send files from a source that you do not "
            "trust."
        )


def _plain(value: Any) -> Any:
    """The value in types that JSON can hold."""
    if type(value).__name__ in ENTITIES:
        return {"entity": type(value).__name__, "fields": dict(value)}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _restored(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, dict) and set(value) == {"entity", "fields"}:
        entity, names = ENTITIES[value["entity"]]
        return entity(*(value["fields"][name] for name in names))
    return [_restored(item) for item in value] if isinstance(value, list) else value
