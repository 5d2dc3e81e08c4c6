"""The search over settings: a known optimum is found, a killed search goes on, behind is stopped, runs are children."""

import json
import math
import os
import random
import re
import sys
from pathlib import Path

import mlflow
import optuna
import pytest

from benchmarks import sweep
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text("a.lr: {low: 1.0e-5, high: 1.0e-1, log: true}\na.idle: {low: 0.0, high: 1.0}\n")
    return tmp_path


def plays(calls, limit=1000):
    """Stands for the training: reports 1 - (log10 lr + 3)^2 / 4 in two validations, and a kill after `limit` calls."""

    def train(command, log):
        if len(calls) >= limit:
            raise KeyboardInterrupt
        values = dict(text.removeprefix("--").split("=", 1) for text in command)
        report = json.loads(values["trainer.callbacks+"])["init_args"]
        trial = optuna.Trial(optuna.load_study(study_name=report["study"], storage=report["storage"]), report["trial"])
        score = 1 - (math.log10(float(values["a.lr"])) + 3) ** 2 / 4
        calls.append((float(values["a.lr"]), score))
        trial.report(score / 2, 1)
        if trial.should_prune():
            trial.set_user_attr("pruned", True)
            return True
        trial.report(score, 2)
        return True

    return train


def test_a_killed_search_goes_on_and_finds_what_matters(here, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(sweep, "train", plays(calls, limit=7))
    with pytest.raises(KeyboardInterrupt):
        sweep.main(["a.yaml"], "space.yaml", trials=16)
    monkeypatch.setattr(sweep, "train", plays(calls))
    sweep.main(["a.yaml"], "space.yaml", trials=16)
    assert len(calls) == 16, "the killed trial is repeated, finished ones are not"
    study = optuna.load_study(study_name="sweep", storage="sqlite:///runs/sweep/sweep.db")
    states = [trial.state.name for trial in study.trials]
    assert states.count("FAIL") == 1 and states.count("PRUNED") >= 1 and len(sweep.done(study)) == 16
    killed = next(trial for trial in study.trials if trial.state.name == "FAIL")
    assert any(trial.params == killed.params for trial in sweep.done(study))
    assert study.best_value == max(score for _, score in calls) > 0.8
    assert Path("runs/sweep/sweep_importance.png").read_bytes()[:4] == b"\x89PNG"
    assert len(Path("runs/sweep/sweep_results.csv").read_text().splitlines()) == 17
    assert re.search(r"16 trials, \d+ stopped early", capsys.readouterr().out)
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (parent,) = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    assert parent.data.metrics["best"] == study.best_value and parent.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {
        "sweep_importance.png", "sweep_results.csv"
    }  # fmt: skip
    Path("space.yaml").write_text("a.lr: [1, 2]")
    with pytest.raises(ConfigError, match="Choose another --name"):
        sweep.main(["a.yaml"], "space.yaml", trials=16)


def test_the_share_of_a_setting_is_its_part_of_the_variance(here):
    """The result is x + 2 y + 0 z with uniform settings: variances of 1 to 4 to 0, so shares of 0.2, 0.8 and 0."""
    uniform = optuna.distributions.FloatDistribution(0.0, 1.0)
    study, rng = optuna.create_study(direction="maximize"), random.Random(0)
    for number in range(80):
        params = {name: rng.random() for name in "xyz"}
        value = params["x"] + 2 * params["y"]
        stopped = number % 4 == 0
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=dict.fromkeys("xyz", uniform), intermediate_values={1: value},
                value=None if stopped else value,
                state=optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE,
            )
        )  # fmt: skip
    shares = sweep.importances(study)
    assert shares == pytest.approx({"x": 0.2, "y": 0.8, "z": 0.0}, abs=0.1)
    assert sweep.importances(optuna.create_study()) == {}


@pytest.mark.parametrize(
    "text, message",
    {
        "a: 3": "write a list of two or more values",
        "a: {low: 1e-5, high: 1e-3}": "a is",
        "a: {low: 3, high: 1}": "a is",
        "a: {low: 3, hihg: 1}": "write a list of two or more values",
        "a: [1]": "write a list of two or more values",
        "- a": "must be a mapping",
    }.items(),
)
def test_a_space_that_is_not_valid_is_refused(here, text, message):
    Path("wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        sweep.read_space(Path("wrong.yaml"))
    with pytest.raises(ConfigError, match="does not exist"):
        sweep.read_space(Path("absent.yaml"))


@pytest.mark.long
def test_trials_are_runs_under_the_sweep(here, monkeypatch):
    for name in ("assets", "configs", "main.py"):
        Path(name).symlink_to(ROOT / name)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setattr(sys, "argv", ["sweep"])
    Path("space.yaml").write_text("model.optimizer.lr: {low: 1.0e-5, high: 1.0e-3, log: true}")
    small = {
        "model.batch.prompts_per_rollout": 2, "model.batch.group_size": 2, "data.val_size": 4, "trainer.max_steps": 2,
        "trainer.val_check_interval": 1, "model.sampling.max_new_tokens": 6,
    }  # fmt: skip
    sweep.main(["configs/grpo.yaml"], "space.yaml", trials=2, settings=small)
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    (parent,) = [run for run in runs if "sweep.study" in run.data.tags]
    children = {run.data.tags["sweep.trial"]: run for run in runs if run is not parent}
    assert set(children) == {"0", "1"}
    study = optuna.load_study(study_name="sweep", storage="sqlite:///runs/sweep/sweep.db")
    for trial in study.trials:
        child = children[str(trial.number)]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id and child.info.status == "FINISHED"
        assert float(child.data.params["lr"]) == pytest.approx(trial.params["model.optimizer.lr"])
        assert trial.value == pytest.approx(child.data.metrics["val/pass1"])
