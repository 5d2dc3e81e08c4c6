"""What a run leaves in MLflow beside metrics, parameters and files: data sets, traces, stages, registered models.

Each is written from plain facts by `record`, through the outbox if the client is one, so that what a server that is away cannot take is sent later; and each
writer looks first whether the store has it already, so that a resumed run repeats nothing.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from mlflow.entities import (
    AssessmentSource,
    Dataset,
    DatasetInput,
    Expectation,
    Feedback,
    InputTag,
    Metric,
    Param,
    Span,
    TraceInfo,
)
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import SpanAttributeKey

from support.files import fingerprint
from tracking.runs import mlflow_runs

#: folders of more bytes are not copied into MLflow
LARGEST = 2 * 1024**3
PARENT, KIND, TRAINING = "mlflow.parentRunId", "mlflow.experimentKind", "custom_model_development"
Facts = dict[str, Any]


def record(client: Any, run: str, kind: str, facts: Facts) -> None:
    """Write facts of a kind of RECORDS to a run.

    Args:
        client: an MlflowClient, or an outbox around one. facts: plain data, as JSON can hold it.
    """
    if hasattr(type(client), "record"):
        client.record(run, kind, facts)
        return
    try:
        RECORDS[kind](client, run, facts)
    except Exception as error:  # a server that is away or too old is no reason to stop a training
        print(
            f"MLflow does not take a {kind} ({type(error).__name__}: {str(error)[:300]}); the run goes on without.",
            file=sys.stderr,
        )


def experiment(client: Any, run: str, facts: Facts) -> None:
    """Pages for training in the run's experiment, unless someone has chosen: MLflow takes an experiment with traces for one of a chat application."""
    here = client.get_run(run).info.experiment_id
    if KIND not in client.get_experiment(here).tags:
        client.set_experiment_tag(here, KIND, facts["kind"])


def dataset(client: Any, run: str, facts: Facts) -> None:
    """A data set as an input of the run: name, digest, context, source, columns, rows; never the rows themselves."""
    known = client.get_run(run).inputs
    if any(
        one.dataset.digest == facts["digest"] and one.dataset.name == facts["name"]
        for one in (known.dataset_inputs if known else [])
    ):
        return
    made = Dataset(
        name=facts["name"],
        digest=facts["digest"],
        source_type="code",
        source=json.dumps(facts["source"])[:65535],
        schema=json.dumps(
            {"mlflow_colspec": [{"name": name, "type": kind} for name, kind in facts["columns"].items()]}
        ),
        profile=json.dumps({"num_rows": facts["rows"]}),
    )
    client.log_inputs(run, [DatasetInput(made, [InputTag("mlflow.data.context", facts["context"])])])


def trace(client: Any, run: str, facts: Facts) -> None:
    """A prompt group: the prompt as input, a span a completion, mean rewards as assessments, the answer as the expectation."""
    place = client.get_run(run).info.experiment_id
    number = fingerprint([run, facts["name"], facts["prompt_id"]])
    identity, tracing = f"tr-{number[:32]}", TracingClient(client.tracking_uri)
    try:
        tracing.get_trace_info(identity)
        return
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    completions, now = facts["completions"], facts["time_ms"]
    inputs, outputs = {"prompt": facts["prompt"]}, [one["completion"] for one in completions]

    def span(index: int, name: str, inputs: Any, outputs: Any, attributes: Facts) -> Span:
        values = {
            SpanAttributeKey.REQUEST_ID: identity,
            SpanAttributeKey.INPUTS: inputs,
            SpanAttributeKey.OUTPUTS: outputs,
        }
        values |= {SpanAttributeKey.SPAN_TYPE: "LLM" if index else "CHAIN"} | attributes
        return Span.from_dict(
            {
                "name": name,
                "trace_id": identity,
                "span_id": f"{int(number[:14], 16) + index:016x}",
                "parent_span_id": f"{int(number[:14], 16):016x}" if index else None,
                "start_time_unix_nano": now * 1_000_000 + index,
                "end_time_unix_nano": (now + 1) * 1_000_000 + index,
                "status": {"code": "STATUS_CODE_OK", "message": ""},
                "attributes": {key: json.dumps(value) for key, value in values.items()},
            }
        )

    spans = [span(0, facts["name"], inputs, outputs, {"rollout": facts["rollout"]})]
    for index, one in enumerate(completions, start=1):
        spans.append(
            span(
                index,
                f"completion {index}",
                inputs,
                one["completion"],
                {k: v for k, v in one.items() if k != "completion"},
            )
        )
    source = AssessmentSource("CODE", facts["judge"])
    means: dict[str, list[float]] = {}
    for one in completions:
        for name, value in one["rewards"].items():
            means.setdefault(name, []).append(value)
    assessments: list[Any] = [
        Feedback(
            name=name,
            value=sum(found) / len(found),
            source=source,
            rationale=f"by completion: {', '.join(f'{x:.4g}' for x in found)}",
        )
        for name, found in means.items()
    ]
    if facts.get("answer") is not None:
        assessments.append(Expectation(name="answer", value=str(facts["answer"]), source=source))
    tracing.start_trace(
        TraceInfo(
            trace_id=identity,
            trace_location=TraceLocation.from_experiment_id(place),
            request_time=now,
            state=TraceState.OK,
            request_preview=str(facts["prompt"])[:1000],
            response_preview=outputs[0][:1000] if outputs else "",
            trace_metadata={"mlflow.sourceRun": run},
            tags={"mlflow.traceName": facts["name"], "rollout": str(facts["rollout"])},
            assessments=assessments,
        )
    )
    tracing.log_spans(place, spans)


def stage(client: Any, run: str, facts: Facts) -> None:
    """A child run of a stage, made when it is first written to: its parameters, metrics at a step, and its end."""
    place = client.get_run(run).info.experiment_id
    query = f"tags.`{PARENT}` = '{run}' and tags.stage = '{facts['stage']}'"
    found = client.search_runs([place], query, max_results=1)
    if found:
        child = found[0].info.run_id
    else:
        tags = {PARENT: run, "stage": str(facts["stage"]), "mlflow.runName": facts["name"]}
        child = client.create_run(place, start_time=facts["time_ms"], tags=tags).info.run_id
    known = found[0].data.params if found else {}
    params = [Param(key, str(value)) for key, value in facts.get("params", {}).items() if key not in known]
    metrics = [Metric(key, value, facts["time_ms"], facts["step"]) for key, value in facts.get("metrics", {}).items()]
    if params or metrics:
        client.log_batch(child, metrics=metrics, params=params)
    if facts.get("ended"):
        client.set_terminated(child, "FINISHED", end_time=facts["time_ms"])


def model(client: Any, run: str, facts: Facts) -> None:
    """The next version of a registered model: its files as artifacts of the run, with tags and, if it has one, an alias. Nothing if this export is registered."""
    known = client.search_model_versions(f"name = '{facts['name']}'")
    if any(version.run_id == run and version.tags.get("digest") == facts["digest"] for version in known):
        return
    folder = Path(facts["folder"])
    if not folder.is_dir():  # sent late, and the folder has gone meanwhile
        print(f"The exported model {folder} is not there any more, so it is not registered as {facts['name']}.")
        return
    client.log_artifacts(run, str(folder), "model")
    try:
        client.create_registered_model(facts["name"], description=facts["description"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run).info.artifact_uri}/model"
    made = client.create_model_version(
        facts["name"], source, run, tags={"digest": facts["digest"]} | facts["tags"], description=facts["description"]
    )
    if facts.get("alias"):
        client.set_registered_model_alias(facts["name"], facts["alias"], made.version)


RECORDS: dict[str, Callable[[Any, str, Facts], None]] = {
    "experiment": experiment,
    "dataset": dataset,
    "trace": trace,
    "stage": stage,
    "model": model,
}


def now_ms() -> int:
    """The time as MLflow counts it."""
    return int(time.time() * 1000)


def register(trainer: L.Trainer, folder: Path, tags: Facts | None = None, alias: str | None = None) -> None:
    """Make an exported folder the next version of the registered model <method's class>-<start>, on the process that writes.

    Args:
        tags: of the version. alias: by which it is asked for, e.g. models:/<name>@<alias>.
    """
    runs = mlflow_runs(trainer)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if runs else []
    size = sum(path.stat().st_size for path in files)
    if not files:
        return
    module: Any = trainer.lightning_module
    name = f"{type(module).__name__}-{Path(module.policy_params.model).name}"
    if size > LARGEST:
        print(f"{folder} has {size / 1e9:.1f} GB, which are not copied into MLflow; nothing is registered as {name}.")
        return
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)}|{hashlib.file_digest(file, 'sha256').hexdigest()}|".encode())
    facts = {
        "name": name, "folder": str(folder.absolute()), "digest": digest.hexdigest()[:32], "alias": alias, "tags": {k: str(v) for k, v in (tags or {}).items()},
        "description": f"{type(module).__name__} from {module.policy_params.model}; an ordinary folder for transformers.",
    }  # fmt: skip
    for client, run in runs:
        record(client, run, "model", facts)
