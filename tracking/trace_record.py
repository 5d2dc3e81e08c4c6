"""A prompt group as an MLflow trace: one span per completion and one per turn below it, rewards as assessments."""

import json
from typing import Any

from mlflow.entities import AssessmentSource, Expectation, Feedback, Span, TraceInfo
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.exceptions import MlflowException
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import SpanAttributeKey

from support.files import fingerprint


def trace(client: Any, run: str, facts: dict[str, Any]) -> None:
    """Write a prompt group as a trace, unless the store has it.

    The prompt is the input, each completion a span, mean rewards are assessments, the answer is the expectation.

    Args:
        facts: name, rollout, judge, time_ms, prompt, prompt_id, completions (each with completion, rewards, further
            attributes and, optionally, turns: each with its text and further attributes) and, optionally, answer.
    """
    experiment = client.get_run(run).info.experiment_id
    digest = fingerprint([run, facts["name"], facts["prompt_id"]])
    trace_id, tracing = f"tr-{digest[:32]}", TracingClient(client.tracking_uri)
    try:
        tracing.get_trace_info(trace_id)
        return
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    outputs = [completion["completion"] for completion in facts["completions"]]
    tracing.start_trace(
        TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=facts["time_ms"],
            state=TraceState.OK,
            request_preview=str(facts["prompt"])[:1000],
            response_preview=outputs[0][:1000] if outputs else "",
            trace_metadata={"mlflow.sourceRun": run},
            tags={"mlflow.traceName": facts["name"], "rollout": str(facts["rollout"])},
            assessments=_assessments(facts),
        )
    )
    tracing.log_spans(experiment, _spans(facts, trace_id, int(digest[:14], 16)))


def _spans(facts: dict[str, Any], trace_id: str, first_id: int) -> list[Span]:
    """The group's span, one span per completion below it, and one per turn below that."""
    inputs, outputs = {"prompt": facts["prompt"]}, [completion["completion"] for completion in facts["completions"]]

    def span(index: int, name: str, outputs: Any, attributes: dict[str, Any], parent: int = 0) -> Span:
        values = {
            SpanAttributeKey.REQUEST_ID: trace_id,
            SpanAttributeKey.INPUTS: inputs,
            SpanAttributeKey.OUTPUTS: outputs,
            SpanAttributeKey.SPAN_TYPE: "LLM" if index else "CHAIN",
            **attributes,
        }
        return Span.from_dict(
            {
                "name": name,
                "trace_id": trace_id,
                "span_id": f"{first_id + index:016x}",
                "parent_span_id": f"{first_id + parent:016x}" if index else None,
                "start_time_unix_nano": facts["time_ms"] * 1_000_000 + index,
                "end_time_unix_nano": (facts["time_ms"] + 1) * 1_000_000 + index,
                "status": {"code": "STATUS_CODE_OK", "message": ""},
                "attributes": {key: json.dumps(value) for key, value in values.items()},
            }
        )

    spans = [span(0, facts["name"], outputs, {"rollout": facts["rollout"]})]
    for index, completion in enumerate(facts["completions"], start=1):
        attributes = {name: value for name, value in completion.items() if name not in ("completion", "turns")}
        spans.append(span(index, f"completion {index}", completion["completion"], attributes))
    for parent, completion in enumerate(facts["completions"], start=1):
        for number, turn in enumerate(completion.get("turns", ()), start=1):
            attributes = {name: value for name, value in turn.items() if name != "text"}
            spans.append(span(len(spans), f"turn {number}", turn["text"], attributes, parent))
    return spans


def _assessments(facts: dict[str, Any]) -> list[Any]:
    """The mean of each reward over the completions that it applies to, and the answer if there is one."""
    source = AssessmentSource("CODE", facts["judge"])
    by_reward: dict[str, list[float]] = {}
    for completion in facts["completions"]:
        for name, value in completion["rewards"].items():
            by_reward.setdefault(name, []).append(value)
    assessments: list[Any] = [
        Feedback(
            name=name,
            value=sum(values) / len(values),
            source=source,
            rationale=f"by completion: {', '.join(f'{value:.4g}' for value in values)}",
        )
        for name, values in by_reward.items()
    ]
    if facts.get("answer") is not None:
        assessments.append(Expectation(name="answer", value=str(facts["answer"]), source=source))
    return assessments
