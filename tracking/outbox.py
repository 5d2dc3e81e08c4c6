"""Writes to MLflow that wait, in their order, while its store cannot be reached."""

import json
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import requests
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from support.files import atomic_write_text
from tracking.run_records import RECORDS, Facts

#: what training writes; everything else goes to the server directly
WRITES = ("log_batch", "log_metric", "log_param", "set_tag", "log_artifact", "log_figure", "set_terminated")
#: error codes of a server that is not there or not able now; other codes are mistakes and are raised
AWAY = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "DEADLINE_EXCEEDED",
    "ENDPOINT_NOT_FOUND",
}
ENTITIES = {"Metric": Metric, "Param": Param, "RunTag": RunTag}


def unreachable(error: Exception) -> bool:
    """Whether an error says that the store cannot be reached now."""
    if isinstance(error, MlflowException):
        return error.error_code in AWAY
    return isinstance(error, (requests.RequestException, OperationalError, ConnectionError, TimeoutError))


def plain(value: Any) -> Any:
    """Arguments as JSON can hold them."""
    if type(value).__name__ in ENTITIES:
        return {"entity": type(value).__name__, "fields": dict(value)}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def entity(value: Any) -> Any:
    """What `plain` was given."""
    if isinstance(value, dict) and "entity" in value:
        kind = ENTITIES[value["entity"]]
        names = {"Metric": ("key", "value", "timestamp", "step")}.get(value["entity"], ("key", "value"))
        return kind(*(value["fields"][name] for name in names))
    return [entity(item) for item in value] if isinstance(value, list) else value


class Outbox:
    """An MlflowClient whose writes wait in a line while the store cannot be reached.

    Args:
        client: the real one. folder: for pictures that wait. retry: seconds between attempts to reach the store again.
    """

    def __init__(self, client: Any, folder: Path, retry: float = 30.0) -> None:
        self.client, self.folder, self.retry = client, folder, retry
        self.line: deque[tuple[str, list[Any], dict[str, Any]]] = deque()
        self.known: dict[str, SimpleNamespace] = {}  # tags and parameters by run, for reading while the store is away
        self.real: dict[str, str] = {}  # ids of runs that were begun without the store
        self.refused: set[str] = set()  # kinds of records that the server does not take
        self.tried = -float("inf")

    def __getattr__(self, name: str) -> Any:
        return partial(self._write, name) if name in WRITES else getattr(self.client, name)

    def get_run(self, run: str) -> Any:
        """The run, or what is known of it."""
        known = self.known.setdefault(run, SimpleNamespace(tags={}, params={}))
        if not self.line:
            try:
                found = self.client.get_run(self.real.get(run, run))
                known.tags, known.params = dict(found.data.tags), dict(found.data.params)
                return found
            except Exception as error:
                if not unreachable(error):
                    raise
        return SimpleNamespace(data=known, info=SimpleNamespace(run_id=run))

    def _write(self, method: str, run: str = "", *given: Any, run_id: str = "", **named: Any) -> None:
        run = run or run_id
        if method == "set_tag":
            self.known.setdefault(run, SimpleNamespace(tags={}, params={})).tags[given[0]] = given[1]
        if method == "log_figure":
            method, given = "log_artifact", self._saved(run, *given)
        if method == "log_artifact":
            given = (str(Path(given[0]).absolute()), *given[1:])
        self.line.append((method, [run, *given], named))
        if len(self.line) == 1 or time.monotonic() - self.tried > self.retry:
            self.send(fresh=len(self.line) == 1)

    def record(self, run: str, kind: str, facts: Facts) -> None:
        """Facts of a kind of tracking/run_records.py, which wait in the line as all else does."""
        if kind not in self.refused:
            self._write("record", run, kind, facts)

    def _refuse(self, kind: str, error: Exception) -> None:
        """A server that is too old for a kind of record, or cannot take one, is no reason to stop a training."""
        if kind not in self.refused:
            print(
                f"MLflow does not take a {kind} ({type(error).__name__}: {str(error)[:300]}); this run goes on without.",
                file=sys.stderr,
            )
        self.refused.add(kind)

    def _saved(self, run: str, figure: Any, name: str) -> tuple[str, str]:
        """A picture as a file, and the artifact folder that it belongs into."""
        path = self.folder / run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return str(path), str(Path(name).parent)

    def send(self, fresh: bool = False) -> bool:
        """Send what waits, oldest first, until the store cannot be reached. Whether nothing waits any more.

        What the store refuses is left out with a message, so that it holds up neither what comes behind it nor the training: a resumed run whose setting has
        changed, say, which could not be compared with the old value while the store was away. Only of an entry that was written just now it is an error.
        """
        self.tried, waited = time.monotonic(), len(self.line) > 1
        while self.line:
            method, given, named = self.line[0]
            try:
                self._begin(given[0])
                run = self.real.get(given[0], given[0])
                if method == "record":
                    RECORDS[given[1]](self.client, run, given[2])
                else:
                    getattr(self.client, method)(run, *given[1:], **named)
            except Exception as error:
                if method == "record" and (
                    not unreachable(error) or getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND"
                ):
                    self.line.popleft()
                    self._refuse(given[1], error)
                    continue
                if not unreachable(error):
                    self.line.popleft()
                    if fresh:
                        raise
                    reason = str(error).partition("\n")[0][:300]
                    print(f"MLflow refuses a {method} that waited, so it is left out: {reason}", file=sys.stderr)
                    continue
                if len(self.line) == 1:
                    print(
                        f"MLflow cannot be reached ({type(error).__name__}); training goes on, metrics are kept and sent later.",
                        file=sys.stderr,
                    )
                return False
            self.line.popleft()
        if waited:
            print("MLflow is back; everything that waited has been sent.", file=sys.stderr)
        return True

    def begin(self, run: str, experiment: str, tags: dict[str, str]) -> None:
        """Remember how to begin a run that the store does not know yet."""
        self.known[run] = SimpleNamespace(tags={"experiment": experiment, **tags}, params={})

    def _begin(self, run: str) -> None:
        if run.startswith("offline-") and run not in self.real:
            tags = dict(self.known[run].tags)
            name = tags.pop("experiment")
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found is not None else self.client.create_experiment(name)
            self.real[run] = self.client.create_run(experiment, tags=tags).info.run_id

    def save(self, path: Path, uri: str) -> None:
        """Write what waits, so that `python -m tracking` can send it."""
        begun = {
            run: known.tags for run, known in self.known.items() if run.startswith("offline-") and run not in self.real
        }
        head = {"tracking_uri": uri, "runs": begun, "real": self.real}
        lines = [
            head,
            *(
                [method, plain(given), {name: plain(value) for name, value in named.items()}]
                for method, given, named in self.line
            ),
        ]
        atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in lines))

    @classmethod
    def load(cls, path: Path) -> "Outbox":
        """What `save` wrote."""
        uri = json.loads(path.read_text().splitlines()[0])["tracking_uri"]
        mlflow.set_tracking_uri(uri)
        outbox = cls(mlflow.MlflowClient(uri), path.parent)
        outbox.take_up(path)
        return outbox

    def take_up(self, path: Path) -> None:
        """Put what `save` wrote before all that waits now."""
        head, *lines = (json.loads(line) for line in path.read_text().splitlines())
        self.known = {run: SimpleNamespace(tags=tags, params={}) for run, tags in head["runs"].items()} | self.known
        self.real = head["real"] | self.real
        self.line.extendleft(
            (method, entity(given), {name: entity(value) for name, value in named.items()})
            for method, given, named in reversed(lines)
        )
