"""An MLflow logger that neither stops a training nor loses data while the store cannot be reached."""

import posixpath
import re
import sqlite3
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from support.errors import ConfigError
from support.files import cache_folder, fingerprint
from tracking.outbox import OFFLINE, Outbox, unreachable

#: characters of a metric's name that MLflow takes
LONGEST_NAME = 250


@contextmanager
def _store_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create the tables of a local store.

    Otherwise two first runs in a folder would each find tables that the other has not finished.
    """
    if not uri.startswith("sqlite:"):
        yield
        return
    store = fingerprint([str(Path(uri.removeprefix("sqlite:///")).absolute())])[:16]
    folder = cache_folder("locks")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"store_{store}.lock"):
        yield


def _check_store(uri: str) -> None:
    """Refuse a local store that cannot be opened at once; MLflow tries for minutes."""
    if uri.startswith("sqlite:///"):
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store:
            store.execute("PRAGMA schema_version")


def metric_name(name: str) -> str:
    """A name that MLflow takes: names may come from data, such as a row's task.

    MLflow refuses names of more than 250 characters and those that are no plain path, and Lightning leaves out other
    characters than ASCII letters, digits and _/.- of a name. Such a name is shortened, and ends in its fingerprint.
    """
    plain = re.sub("[^a-zA-Z0-9_/. -]+", "", name)
    is_path = posixpath.normpath(plain) == plain and not plain.startswith(("/", "..")) and plain != "."
    if name.isascii() and is_path and len(plain) <= LONGEST_NAME:
        return name
    parts = [part for part in plain.split("/") if part.strip(". ")]
    return f"{'/'.join(parts)[: LONGEST_NAME - 9]}_{fingerprint([name])[:8]}"


class PatientMLFlowLogger(MLFlowLogger):
    """Lightning's MLFlowLogger with an outbox: a run continues, and loses nothing, while the store cannot be reached.

    The store may be absent at the start, in the middle or at the end of a run.

    Args:
        experiment_name, tracking_uri, run_name, run_id, tags, artifact_location: as in Lightning's logger.
        pending: folder for writes that could not be sent by the end of the run.
    """

    def __init__(
        self,
        experiment_name: str = "lightning-posttrain",
        tracking_uri: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        tags: dict[str, Any] | None = None,
        artifact_location: str | None = None,
        pending: str = "runs/pending",
    ) -> None:
        try:
            with _store_lock(str(tracking_uri)):
                _check_store(str(tracking_uri))
                super().__init__(
                    experiment_name,
                    run_name=run_name,
                    tracking_uri=tracking_uri,
                    tags=tags,
                    artifact_location=artifact_location,
                    run_id=run_id,
                )
        except (OSError, sqlite3.Error, SQLAlchemyError, MlflowException) as error:
            if unreachable(error) and not str(tracking_uri).startswith("sqlite:"):
                raise
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise ConfigError(
                f"MLflow's store {tracking_uri} cannot be opened: {reason}. Free its disk or correct its path (the "
                "variable MLFLOW_TRACKING_URI), or train without it: --trainer.logger false."
            ) from error
        self.pending = Path(pending)
        self.outbox = Outbox(self._mlflow_client, self.pending)
        self._last: tuple[int | None, dict[str, float]] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The outbox around MLflow's client, which has the client's methods."""
        if not self._initialized:
            try:
                MLFlowLogger.experiment.fget(self)  # type: ignore[attr-defined]
            except Exception as error:
                if not unreachable(error):
                    raise
                print(
                    f"MLflow at {self._tracking_uri} cannot be reached ({error}); training continues, metrics are kept "
                    "and sent later.",
                    file=sys.stderr,
                )
                if self._run_id is None:
                    self._run_id = f"{OFFLINE}{uuid.uuid4().hex[:12]}"
                    name = {} if self._run_name is None else {"mlflow.runName": self._run_name}
                    self.outbox.begin(self._run_id, self._experiment_name, (self.tags or {}) | name)
                self._initialized = True
            if self._waiting.is_file():  # of this run's previous process, which was killed
                self.outbox.take_up(self._waiting)
        return self.outbox

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics as Lightning's logger does, but leave out an immediate repetition of a step's metrics."""
        if (step, metrics) != self._last:
            super().log_metrics({metric_name(name): value for name, value in metrics.items()}, step)
        self._last = (step, dict(metrics))

    @property
    def _waiting(self) -> Path:
        """The file of this run's writes that wait."""
        return self.pending / f"{self._run_id}.jsonl"

    @rank_zero_only
    def keep(self) -> None:
        """Save the waiting writes to the disk, where the next start of a killed run finds them.

        `callbacks.RolloutCheckpoint` calls it before every checkpoint.
        """
        if self._initialized and self.outbox.queue:
            self.outbox.save(self._waiting, str(self._tracking_uri))
        elif self._initialized:
            self._waiting.unlink(missing_ok=True)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        super().finalize(status)
        if self._initialized and not self.outbox.send():
            path = self._waiting
            self.outbox.save(path, str(self._tracking_uri))
            print(
                f"MLflow still cannot be reached; the waiting writes are in {path}. Send them later with: "
                f"python -m tracking {path}",
                file=sys.stderr,
            )
        elif self._initialized:
            self._waiting.unlink(missing_ok=True)
