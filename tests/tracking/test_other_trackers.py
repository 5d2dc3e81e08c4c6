"""TensorBoard and Weights & Biases (offline) beside MLflow: one training, three loggers, the same metrics."""

import json
import os
from types import SimpleNamespace

import mlflow
import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import CompletionsTable, RunFacts
from callbacks.completions import as_markdown
from cli.resume import _is_wandb
from rewards import ExactAnswer
from tests.helpers import build, fit, sums
from tracking import PatientMLFlowLogger
from tracking.runs import run_folder


@pytest.fixture(scope="module")
def run(reasoner, tmp_path_factory):
    """A training with three loggers, and what each of them has."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        wandb = WandbLogger(project="p", save_dir=folder, offline=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        loggers = [
            wandb, TensorBoardLogger(folder, name="", default_hp_metric=False), PatientMLFlowLogger(tracking_uri=uri)
        ]  # fmt: skip
        trainer = fit(
            build(reasoner, [ExactAnswer()]), 2, [CompletionsTable(every_n_rollouts=1), RunFacts()], seed=0,
            data=sums(train_size=8, val_size=4), folder=folder, validate_every=1, logger=loggers, log_every_n_steps=1,
        )  # fmt: skip
        told = SimpleNamespace(
            trainer=trainer, folder=folder, id=wandb.experiment.id, summary=dict(wandb.experiment.summary),
            config=dict(wandb.experiment.config), files=wandb.experiment.dir,
        )  # fmt: skip
        wandb.experiment.finish()
    told.events = EventAccumulator(str(folder / "version_0"))
    told.events.Reload()
    told.mlflow = mlflow.MlflowClient(uri).get_run(loggers[2].run_id).data
    return told


def test_all_three_have_the_same_metrics(run):
    expected = run.mlflow.metrics
    names = {name.replace("@", ""): name for name in run.events.Tags()["scalars"]}
    assert {"val/pass1", "val/length", "train/reward"} <= expected.keys() <= names.keys()
    for name, value in expected.items():
        assert run.events.Scalars(names[name])[-1].value == pytest.approx(value, rel=1e-5, abs=1e-6), name
        assert run.summary[names[name]] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_completions_are_texts_and_tables(run):
    for kind in ("train", "val"):
        (text, *_) = run.events.Tensors(f"completions/{kind}/text_summary")
        assert b"| prompt | completion |" in text.tensor_proto.string_val[0]
        summary = run.summary[f"completions/{kind}"]
        table = json.loads(open(os.path.join(run.files, summary["path"])).read())
        assert table["columns"][:2] == ["prompt", "completion"] and len(table["data"]) == summary["nrows"] > 0


def test_parameters_have_the_short_names_of_mlflow(run):
    short = {
        name: value for name, value in run.mlflow.params.items() if name in ("method", "lr", "group_size", "rewards")
    }
    assert len(short) == 4 and short.items() <= {name: str(value) for name, value in run.config.items()}.items()


def test_the_runs_folder_has_the_name_of_the_run(run):
    assert run_folder(run.trainer) == run.folder / run.id
    assert (run.folder / run.id / "completions/val_000002.json").is_file()
    assert _is_wandb(Namespace(class_path="lightning.pytorch.loggers.WandbLogger")) and not _is_wandb(False)


def test_a_completion_is_no_markup():
    text = as_markdown({"completion": ["a|b\n`c`"], "reward": [None], "length": [0.123456]})
    assert text.splitlines()[2] == "| `a\\|b\u23ce'c'` |  | `0.1235` |"
