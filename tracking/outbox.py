"""Writes to MLflow that wait, in their order, while its store cannot be reached."""

import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from tracking.pending_file import CLIENT_METHODS, RECORD, Pending, Write, read_pending, write_pending
from tracking.run_records import RECORDS, Facts, refused

#: the writes of a training; all other calls go to the store directly
WRITES = (*CLIENT_METHODS, "log_figure")
#: error codes of a server that is missing or not able now; other codes are mistakes and are raised
AWAY = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "DEADLINE_EXCEEDED",
    "ENDPOINT_NOT_FOUND",
}
#: start of the temporary id of a run that begins without the store
OFFLINE = "offline-"


def unreachable(error: Exception) -> bool:
    """Whether an error means that the store cannot be reached now."""
    if isinstance(error, MlflowException):
        return error.error_code in AWAY
    return isinstance(error, (requests.RequestException, OperationalError, ConnectionError, TimeoutError))


class Outbox:
    """An MlflowClient whose writes wait in a queue while the store cannot be reached.

    Args:
        client: MLflow's. folder: for pictures that wait. retry: seconds between attempts to reach the store again.

    Fields:
        queue: the writes that wait, oldest first.
        known_runs: tags and parameters by run, for reading while the store is away.
        run_ids: the store's id by the temporary id of a run that began without the store.
        refused_kinds: kinds of records that the server does not take.
    """

    def __init__(self, client: Any, folder: Path, retry: float = 30.0) -> None:
        self.client, self.folder, self.retry = client, folder, retry
        self.queue: deque[Write] = deque()
        self.known_runs: dict[str, SimpleNamespace] = {}
        self.run_ids: dict[str, str] = {}
        self.refused_kinds: set[str] = set()
        self._last_attempt = -float("inf")

    def __getattr__(self, name: str) -> Any:
        return partial(self._write, name) if name in WRITES else getattr(self.client, name)

    def get_run(self, run: str) -> Any:
        """The store's run, or, while the store is away, the tags and parameters that are known of it."""
        known = self.known_runs.setdefault(run, SimpleNamespace(tags={}, params={}))
        if not self.queue:
            try:
                stored = self.client.get_run(self.run_ids.get(run, run))
                known.tags, known.params = dict(stored.data.tags), dict(stored.data.params)
                return stored
            except Exception as error:
                if not unreachable(error):
                    raise
        return SimpleNamespace(data=known, info=SimpleNamespace(run_id=run))

    def record(self, run: str, kind: str, facts: Facts) -> None:
        """Write facts of a kind of tracking/run_records.py, in the same queue as all other writes."""
        if kind not in self.refused_kinds:
            self._write(RECORD, run, kind, facts)

    def _write(self, method: str, run: str = "", *arguments: Any, run_id: str = "", **keywords: Any) -> None:
        run = run or run_id
        if method == "set_tag":
            tags = self.known_runs.setdefault(run, SimpleNamespace(tags={}, params={})).tags
            tags[arguments[0]] = arguments[1]
        if method == "log_figure":
            method, arguments = "log_artifact", self._saved_figure(run, *arguments)
        if method == "log_artifact":
            arguments = (str(Path(arguments[0]).absolute()), *arguments[1:])
        self.queue.append((method, [run, *arguments], keywords))
        if len(self.queue) == 1 or time.monotonic() - self._last_attempt > self.retry:
            self.send(is_new=len(self.queue) == 1)

    def _saved_figure(self, run: str, figure: Any, name: str) -> tuple[str, str]:
        """Save a figure as a file. Returns its path and its artifact folder."""
        path = self.folder / run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        return str(path), str(Path(name).parent)

    def send(self, is_new: bool = False) -> bool:
        """Send the writes that wait, oldest first, until the store cannot be reached.

        A write that the store refuses is dropped with a message, so that it holds up neither the writes behind it nor
        the training. An example is a resumed run with a changed setting, which could not be compared with the old
        value while the store was away.

        Args:
            is_new: the only write in the queue was made just now. If the store refuses it, the error is raised.

        Returns:
            whether the queue is empty now.
        """
        self._last_attempt, some_waited = time.monotonic(), len(self.queue) > 1
        while self.queue:
            method, arguments, _ = self.queue[0]
            try:
                self._send_first()
            except Exception as error:
                away = unreachable(error)
                if method == RECORD and (not away or getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND"):
                    refused(self, arguments[1], error)
                elif away:
                    if len(self.queue) == 1:
                        print(
                            f"MLflow cannot be reached ({type(error).__name__}); training continues, metrics are kept "
                            "and sent later.",
                            file=sys.stderr,
                        )
                    return False
                elif is_new:
                    self.queue.popleft()
                    raise
                else:
                    reason = str(error).partition("\n")[0][:300]
                    print(f"MLflow refuses a {method} that waited, so it is left out: {reason}", file=sys.stderr)
            self.queue.popleft()
        if some_waited:
            print("MLflow is back; everything that waited has been sent.", file=sys.stderr)
        return True

    def _send_first(self) -> None:
        method, arguments, keywords = self.queue[0]
        self._create_run(arguments[0])
        run = str(self.run_ids.get(arguments[0], arguments[0]))
        if method == RECORD:
            RECORDS[arguments[1]](self.client, run, arguments[2])
        else:
            getattr(self.client, method)(run, *arguments[1:], **keywords)

    def begin(self, run: str, experiment: str, tags: dict[str, str]) -> None:
        """Remember the experiment and the tags of a run that the store does not know yet."""
        self.known_runs[run] = SimpleNamespace(tags={"experiment": experiment, **tags}, params={})

    def _create_run(self, run: str) -> None:
        """Create the run in the store if it began without the store."""
        if self._is_unsent(run):
            tags = dict(self.known_runs[run].tags)
            name = tags.pop("experiment")
            stored = self.client.get_experiment_by_name(name)
            experiment = stored.experiment_id if stored is not None else self.client.create_experiment(name)
            self.run_ids[run] = self.client.create_run(experiment, tags=tags).info.run_id

    def _is_unsent(self, run: str) -> bool:
        return run.startswith(OFFLINE) and run not in self.run_ids

    def save(self, path: Path, uri: str) -> None:
        """Write the queue to a file, which `python -m tracking` sends to the store at `uri`."""
        runs = {run: known.tags for run, known in self.known_runs.items() if self._is_unsent(run)}
        write_pending(path, Pending(uri, list(self.queue), runs, self.run_ids))

    @classmethod
    def load(cls, path: Path) -> "Outbox":
        """An outbox with the queue of a file that `save` wrote.

        Raises:
            ConfigError: the file cannot be read, or asks for anything else than the writes of a training.
        """
        uri = read_pending(path).tracking_uri
        mlflow.set_tracking_uri(uri)
        outbox = cls(mlflow.MlflowClient(uri), path.parent)
        outbox.take_up(path)
        return outbox

    def take_up(self, path: Path) -> None:
        """Put the writes of a file before those that wait now. Raises ConfigError as `load` does."""
        pending = read_pending(path)
        stored = {run: SimpleNamespace(tags=tags, params={}) for run, tags in pending.runs.items()}
        self.known_runs = stored | self.known_runs
        self.run_ids = pending.run_ids | self.run_ids
        self.queue.extendleft(reversed(pending.writes))
