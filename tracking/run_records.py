"""Records of a run in MLflow besides metrics, parameters and files: data sets, traces, stages, registered models.

`record` writes each of them from plain facts. If the client is an outbox, records that an absent server cannot take are
sent later. Each writer first checks whether the store has the record, so that a resumed run repeats nothing.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from tracking.model_card import CARD
from tracking.runs import mlflow_runs
from tracking.trace_record import trace

#: maximum number of bytes of a folder that is copied into MLflow
LARGEST = 2 * 1024**3
PARENT, KIND, TRAINING = "mlflow.parentRunId", "mlflow.experimentKind", "custom_model_development"
Facts = dict[str, Any]


def record(client: Any, run: str, kind: str, facts: Facts) -> None:
    """Write facts to a run.

    Args:
        client: an MlflowClient, or an outbox around one.
        kind: a key of RECORDS. facts: plain data that JSON can hold, as the writer of this kind needs it.
    """
    if hasattr(type(client), "record"):
        client.record(run, kind, facts)
        return
    try:
        RECORDS[kind](client, run, facts)
    except Exception as error:  # a server that is away or too old is no reason to stop a training
        refused(client, kind, error)


def refused(client: Any, kind: str, error: Exception) -> None:
    """Print, once per client and kind of record, that the run continues without such records."""
    kinds = vars(client).setdefault("refused_kinds", set())
    if kind not in kinds:
        print(
            f"MLflow does not take a {kind} ({type(error).__name__}: {str(error)[:300]}); the run continues "
            "without it.",
            file=sys.stderr,
        )
    kinds.add(kind)


def experiment(client: Any, run: str, facts: Facts) -> None:
    """Set the kind of the run's experiment, unless it is set.

    Without it, MLflow shows an experiment with traces as a chat application, not as a training.
    """
    experiment_id = client.get_run(run).info.experiment_id
    if KIND not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, KIND, facts["kind"])


def dataset(client: Any, run: str, facts: Facts) -> None:
    """Write a data set as an input of the run: name, digest, context, source, columns, number of rows; not the rows."""
    inputs = client.get_run(run).inputs
    stored = [entry.dataset for entry in inputs.dataset_inputs] if inputs else []
    if any(data.digest == facts["digest"] and data.name == facts["name"] for data in stored):
        return
    data = Dataset(
        name=facts["name"],
        digest=facts["digest"],
        source_type="code",
        source=json.dumps(facts["source"])[:65535],
        schema=json.dumps(
            {"mlflow_colspec": [{"name": name, "type": kind} for name, kind in facts["columns"].items()]}
        ),
        profile=json.dumps({"num_rows": facts["rows"]}),
    )
    client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", facts["context"])])])


def stage(client: Any, run: str, facts: Facts) -> None:
    """Write parameters, metrics at a step, or the end of a stage to its child run, which the first write creates."""
    experiment_id = client.get_run(run).info.experiment_id
    query = f"tags.`{PARENT}` = '{run}' and tags.stage = '{facts['stage']}'"
    children = client.search_runs([experiment_id], query, max_results=1)
    if children:
        child = children[0].info.run_id
    else:
        tags = {PARENT: run, "stage": str(facts["stage"]), "mlflow.runName": facts["name"]}
        child = client.create_run(experiment_id, start_time=facts["time_ms"], tags=tags).info.run_id
    stored = children[0].data.params if children else {}
    params = [Param(key, str(value)) for key, value in facts.get("params", {}).items() if key not in stored]
    metrics = [Metric(key, value, facts["time_ms"], facts["step"]) for key, value in facts.get("metrics", {}).items()]
    if params or metrics:
        client.log_batch(child, metrics=metrics, params=params)
    if facts.get("ended"):
        client.set_terminated(child, "FINISHED", end_time=facts["time_ms"])


def model(client: Any, run: str, facts: Facts) -> None:
    """Register the next version of a model, unless this export is registered.

    Its files become artifacts of the run; the version gets tags and, if there is one, an alias.
    """
    versions = client.search_model_versions(f"name = '{facts['name']}'")
    if any(version.run_id == run and version.tags.get("digest") == facts["digest"] for version in versions):
        return
    folder = Path(facts["folder"])
    if not folder.is_dir():  # sent late, after the folder was deleted
        print(f"The exported model {folder} no longer exists, so it is not registered as {facts['name']}.")
        return
    client.log_artifacts(run, str(folder), "model")
    try:
        client.create_registered_model(facts["name"], description=facts["description"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run).info.artifact_uri}/model"
    version = client.create_model_version(
        facts["name"], source, run, tags={"digest": facts["digest"]} | facts["tags"], description=facts["description"]
    )
    if facts.get("alias"):
        client.set_registered_model_alias(facts["name"], facts["alias"], version.version)


RECORDS: dict[str, Callable[[Any, str, Facts], None]] = {
    "experiment": experiment,
    "dataset": dataset,
    "trace": trace,
    "stage": stage,
    "model": model,
}


def now_ms() -> int:
    """The current time in milliseconds, as MLflow counts it."""
    return int(time.time() * 1000)


def register(trainer: L.Trainer, folder: Path, tags: Facts | None = None, alias: str | None = None) -> None:
    """Make an exported folder the next version of the registered model <method's class>-<start model>.

    Does nothing on processes other than the first, and without an MLflow logger.

    Args:
        tags: of the version. alias: its name in addresses such as models:/<name>@<alias>.
    """
    runs = mlflow_runs(trainer)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if runs else []
    size = sum(path.stat().st_size for path in files)
    if not files:
        return
    module: Any = trainer.lightning_module
    name = f"{type(module).__name__}-{Path(module.policy_params.model).name}"
    if size > LARGEST:
        print(
            f"{folder} has {size / 1e9:.1f} GB, more than the {LARGEST / 1e9:.1f} GB that MLflow gets a copy of, so "
            f"it is not registered as {name}."
        )
        return
    digest = hashlib.sha256()
    for path in files:
        if path.name == CARD:  # it tells of a run's metrics; the model is what is loaded
            continue
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)}|{hashlib.file_digest(file, 'sha256').hexdigest()}|".encode())
    facts = {
        "name": name,
        "folder": str(folder.absolute()),
        "digest": digest.hexdigest()[:32],
        "alias": alias,
        "tags": {key: str(value) for key, value in (tags or {}).items()},
        "description": f"{type(module).__name__} from {module.policy_params.model}; a folder that transformers loads.",
    }
    for client, run in runs:
        record(client, run, "model", facts)
