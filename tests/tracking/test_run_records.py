"""Records of runs in MLflow, read back through its own queries, also after an absence of the server and a resume."""

import json
import os
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException
from transformers import AutoModelForCausalLM

from lightning_modules.hc_rlhf import verify
from main import main
from tests.helpers.processes import finish
from tests.resume.runs import Command
from tests.test_cli import hc_rlhf, short
from tests.tracking.test_outbox import Flaky
from tracking import run_records as records
from tracking.logger import Outbox, PatientMLFlowLogger
from tracking.run_names import makes_a_method, method_and_paper, run_name
from tracking.run_records import PARENT, record

ROOT = Path(__file__).resolve().parents[2]
GROUP = [
    {"completion": "1+1+0=2</think>2", "tokens": 9, "finish": "eos", "rewards": {"exact_answer": 1.0, "length": -0.5}},
    {"completion": "3", "tokens": 2, "finish": "length", "rewards": {"exact_answer": 0.0}},
]
TRACE = {
    "name": "val, rollout 7",
    "rollout": 7,
    "judge": "GRPO",
    "time_ms": 1_700_000_000_000,
    "prompt": "1+1=?",
    "prompt_id": "a",
    "answer": "2",
}
DATASET = {
    "name": "Sums, train",
    "digest": "0123456789abcdef",
    "context": "training",
    "source": {"class": "Sums"},
    "columns": {"prompt": "string"},
    "rows": 3,
}


class Away(Flaky):
    """Also where the writers ask for the store's address, which needs no server."""

    @property
    def tracking_uri(self):
        return self.client.tracking_uri


@pytest.fixture
def store():
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


@pytest.fixture
def logger(here):
    made = PatientMLFlowLogger("patience", tracking_uri=os.environ["MLFLOW_TRACKING_URI"], run_name="a run")
    made._mlflow_client = made.outbox.client = Away(made._mlflow_client)
    made.outbox.retry = 0.0
    return made


def traces(store, name="lightning-posttrain"):
    return store.search_traces([store.get_experiment_by_name(name).experiment_id], max_results=100)


def test_a_trace_is_a_group_with_its_rewards(logger, store):
    for _ in range(2):  # a resumed run comes by again
        record(logger.experiment, logger.run_id, "trace", TRACE | {"completions": GROUP})
    (found,) = traces(store, "patience")
    root, *spans = found.data.spans
    assert root.inputs == {"prompt": "1+1=?"} and root.outputs == ["1+1+0=2</think>2", "3"]
    assert [span.outputs for span in spans] == root.outputs and all(span.parent_id == root.span_id for span in spans)
    assert spans[1].attributes["finish"] == "length" and spans[0].attributes["rewards"] == {
        "exact_answer": 1.0,
        "length": -0.5,
    }
    said = {one.name: one.value for one in found.info.assessments}
    assert said == {"exact_answer": 0.5, "length": -0.5, "answer": "2"}, "the mean of those that a reward applies to"
    assert found.info.trace_metadata["mlflow.sourceRun"] == logger.run_id and found.info.tags["rollout"] == "7"


def test_records_wait_for_the_server_in_their_place(logger, store, here):
    logger._mlflow_client.away = True
    assert logger.version.startswith("offline-")
    record(logger.experiment, logger.run_id, "dataset", DATASET)
    logger.log_metrics({"m": 1.0}, 1)
    record(logger.experiment, logger.run_id, "trace", TRACE | {"completions": GROUP})
    facts = {
        "stage": 2,
        "name": "stage 2 of 3",
        "params": {"lr": 0.1},
        "metrics": {"val/pass1": 0.5},
        "step": 4,
        "time_ms": 5,
    }
    record(logger.experiment, logger.run_id, "stage", facts)
    logger.finalize("success")
    (waiting,) = (here / "runs/pending").glob("*.jsonl")
    assert Outbox.load(waiting).send()
    (run,) = store.search_runs(
        [store.get_experiment_by_name("patience").experiment_id], "attributes.run_name = 'a run'"
    )
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, json.loads(given.dataset.profile)) == (
        "Sums, train",
        "0123456789abcdef",
        {"num_rows": 3},
    )
    assert given.tags[0].value == "training" and run.data.metrics == {"m": 1.0}
    assert [one.info.trace_metadata["mlflow.sourceRun"] for one in traces(store, "patience")] == [run.info.run_id]
    (child,) = store.search_runs([run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'")
    assert (
        child.info.run_name == "stage 2 of 3"
        and child.data.params == {"lr": "0.1"}
        and child.data.metrics == {"val/pass1": 0.5}
    )


@pytest.mark.parametrize("code", ["ENDPOINT_NOT_FOUND", "BAD_REQUEST"])
def test_a_server_that_knows_no_traces_stops_nothing(logger, monkeypatch, capsys, code):
    def refuse(*_):
        raise MlflowException(
            "no such thing", error_code=getattr(__import__("mlflow.protos.databricks_pb2", fromlist=[code]), code)
        )

    monkeypatch.setitem(records.RECORDS, "trace", refuse)
    for _ in range(3):
        record(logger.experiment, logger.run_id, "trace", TRACE | {"completions": GROUP})
        record(logger._mlflow_client.client, logger.run_id, "trace", TRACE | {"completions": GROUP})
    logger.log_metrics({"m": 1.0}, 1)
    assert not logger.outbox.queue and logger._mlflow_client.get_run(logger.run_id).data.metrics == {"m": 1.0}
    assert capsys.readouterr().err.count("the run continues without it") == 2, "once per client"


def test_a_run_says_what_it_is_and_a_resume_repeats_nothing(here, reasoner, store):
    few = ["--trainer.callbacks+=CompletionTraces", "--trainer.callbacks.prompts=2"]
    main(["fit", *short(reasoner, *few, "--config", str(ROOT / "configs/objectives/dapo.yaml"), "--seed_everything=3")])
    main(
        [
            "fit",
            *short(
                reasoner,
                *few,
                "--config",
                str(ROOT / "configs/objectives/dapo.yaml"),
                "--seed_everything=3",
                "--ckpt_path=last",
                "--trainer.max_steps=4",
            ),
        ]
    )
    (run,) = store.search_runs([store.get_experiment_by_name("lightning-posttrain").experiment_id])
    assert run.info.run_name == f"grpo+dapo, {Path(reasoner).name}, Arithmetic, seed 3"
    params, tags = run.data.params, run.data.tags
    assert (params["method"], params["seed"], params["group_size"], params["lr"], params["aggregation"]) == (
        "grpo+dapo",
        "3",
        "4",
        "0.0003",
        "TokenMean",
    )
    assert params["rewards"] == "exact_answer, soft_overlong" and params["model"] == Path(reasoner).name
    assert (tags["method"], tags["paper"], tags["seed"]) == ("grpo+dapo", "2402.03300, 2503.14476", "3")
    assert tags["resumed_from"].endswith("rollout_000002.ckpt")
    assert store.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    contexts = {
        tag.value: json.loads(one.dataset.profile)["num_rows"] for one in run.inputs.dataset_inputs for tag in one.tags
    }
    assert contexts == {"training": 64, "validation": 8} and len(run.inputs.dataset_inputs) == 2
    found = traces(store)
    assert sorted((one.info.tags["rollout"], one.data.spans[0].inputs["prompt"]) for one in found) == sorted(
        (rollout, row) for rollout in ("0", "2", "4") for row in {one.data.spans[0].inputs["prompt"] for one in found}
    ), "two prompts, the same ones after 0, 2 and 4 rollouts"
    assert len(found) == 6


@pytest.mark.long
def test_two_processes_write_once(here, reasoner, store):
    arguments = [
        *short(reasoner),
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.callbacks+=CompletionTraces",
        "--trainer.callbacks.prompts=1",
    ]
    assert finish(Command(arguments, here)) == 0, (here / "log.txt").read_text()[-3000:]
    (run,) = store.search_runs([store.get_experiment_by_name("lightning-posttrain").experiment_id])
    assert len(run.inputs.dataset_inputs) == 2 and run.data.params["processes"] == "2" and len(traces(store)) == 2


def test_stages_are_runs_under_the_run(here, reasoner, store):
    stages = [
        {"from_rollout": 0, "set": {"stage": 1}, "lr": 1e-4},
        {"from_rollout": 2, "set": {"stage": 2}, "lr": 1e-5},
    ]
    overlay = {"trainer": {"callbacks": [{"class_path": "callbacks.StageSchedule", "init_args": {"stages": stages}}]}}
    (here / "stages.yaml").write_text(yaml.safe_dump(overlay))
    given = [argument for argument in short(reasoner) if not argument.startswith("--config")]
    main(["fit", f"--config={ROOT}/configs/auto_think.yaml", "--config=stages.yaml", *given, "--trainer.max_steps=4"])
    runs = store.search_runs([store.get_experiment_by_name("lightning-posttrain").experiment_id])
    (parent,) = [run for run in runs if PARENT not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {"stage 1 of 2", "stage 2 of 2"} and {
        run.data.tags[PARENT] for run in children.values()
    } == {parent.info.run_id}
    assert [children[name].data.params["lr"] for name in sorted(children)] == ["0.0001", "1e-05"]
    assert all(run.info.status == "FINISHED" for run in children.values())
    history = {
        name: [(p.step, p.value) for p in store.get_metric_history(run.info.run_id, "val/pass1")]
        for name, run in children.items()
    }
    assert [[step for step, _ in history[name]] for name in sorted(history)] == [[2], [4]], (
        "each has the validations within it"
    )
    whole = [point.value for point in store.get_metric_history(parent.info.run_id, "val/pass1")]
    assert whole[1:] == [value for name in sorted(history) for _, value in history[name]]


def test_an_export_is_a_version_that_transformers_loads(here, reasoner, store):
    export = ["--trainer.callbacks+=ExportPolicy", "--trainer.callbacks.folder=out"]
    main(["fit", *short(reasoner, *export)])
    main(["fit", *short(reasoner, *export, "--ckpt_path=last")])  # nothing left to train: the same export
    main(["fit", *short(reasoner, *export, "--seed_everything=1")])
    name = f"GRPO-{Path(reasoner).name}"
    versions = sorted(store.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    assert [version.version for version in versions] in (["1", "2"], [1, 2]) and versions[0].run_id != versions[
        1
    ].run_id
    folder = mlflow.artifacts.download_artifacts(f"models:/{name}/2", dst_path=str(here / "got"))
    loaded, wanted = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, "out"))
    assert all(loaded[key].equal(wanted[key]) for key in wanted)


def test_a_certified_policy_is_registered_with_its_certificate(here, assistant, store):
    main(["fit", *hc_rlhf(assistant, here)])
    (version,) = store.search_model_versions(f"name = 'HCRLHF-{Path(assistant).name}'")
    assert store.get_model_version_by_alias(version.name, "certified").version == version.version
    assert version.tags["safety.verdict"] == "SAFE" and float(version.tags["safety.ucb"]) <= 0.99
    folder = mlflow.artifacts.download_artifacts(f"models:/{version.name}@certified", dst_path=str(here / "got"))
    assert verify(folder)["verdict"] == "SAFE", "every file is the one that was certified"
    card = (Path(folder) / "README.md").read_text()
    assert "SAFE: the mean cost is at most" in card and "arxiv:2506.08266" in card and "## Configuration" in card
    children = store.search_runs(
        [store.get_run(version.run_id).info.experiment_id], f"tags.`{PARENT}` = '{version.run_id}'"
    )
    params = {run.info.run_name: run.data.params for run in children}
    assert set(params) == {"reward model seed 0", "cost model seed 0"}
    for run in params.values():
        assert run["epochs"] == "1" and run["batch_size"] == "32" and run["model"] == str(assistant)
        assert int(run["pairs"]) + int(run["held_out_pairs"]) == 150 and float(run["lr"]) > 0
    assert {run["method"] for run in params.values()} == {"RewardModel", "CostModel"}


def test_names(here):
    configs = ROOT / "configs"
    cases = {
        ("laser.yaml",): ("laser", "2505.15612"),
        ("laser.yaml", "laser_d.yaml", "compare.yaml"): ("laser+laser_d", "2505.15612"),
        ("grpo.yaml", "models/smollm2.yaml", "scale/two_cpus.yaml"): ("grpo", "2402.03300"),
        ("grpo.yaml", "objectives/gspo.yaml"): ("grpo+gspo", "2402.03300, 2507.18071"),
        ("hc_rlhf.yaml",): ("hc_rlhf", "2506.08266"),
    }
    for names, wanted in cases.items():
        assert method_and_paper([configs / name for name in names], "lightning_modules.GRPO") == wanted
    (here / "config_fit.yaml").write_text((configs / "laser.yaml").read_text())
    assert method_and_paper([here / "config_fit.yaml"], "lightning_modules.GRPO")[0] == "GRPO", (
        "a run's own configuration has no name"
    )
    assert method_and_paper([], "lightning_modules.AdaptThink") == ("AdaptThink", "2505.13417")
    assert not makes_a_method("a: [") and not makes_a_method("- 1")
    assert (
        run_name("sft", "assets/tiny_reasoner", "datamodules.Demonstrations", 4)
        == "sft, tiny_reasoner, Demonstrations, seed 4"
    )
    assert run_name("x", None, None, 0) == "x, seed 0"
