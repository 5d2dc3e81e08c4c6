"""MLflow's store goes away at the start, in the middle and at the end; nothing is lost and nothing stops."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from matplotlib.figure import Figure
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from main import main
from tracking.logger import Outbox, PatientMLFlowLogger

ROOT = Path(__file__).resolve().parents[2]


class Flaky:
    """A client whose server is away while `away` is set."""

    def __init__(self, client):
        self.client, self.away = client, False

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*given, **named):
            if self.away:
                raise MlflowException("API request to http://127.0.0.1:1 failed with exception HTTPConnectionPool")
            return method(*given, **named)

        return call


@pytest.fixture
def logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = PatientMLFlowLogger("patience", tracking_uri=os.environ["MLFLOW_TRACKING_URI"], run_name="a run")
    made._mlflow_client = made.outbox.client = Flaky(made._mlflow_client)
    made.outbox.retry = 0.0
    return made


def history(name):
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("patience").experiment_id])
    return run, [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def test_away_in_the_middle(logger, capsys):
    logger.log_metrics({"m": 1.0}, 1)
    logger._mlflow_client.away = True
    for step in (2, 3):
        logger.log_metrics({"m": float(step)}, step)
    logger.experiment.set_tag(logger.run_id, "t", "x")
    assert logger.experiment.get_run(logger.run_id).data.tags["t"] == "x", "what was written can be read"
    logger.experiment.log_figure(logger.run_id, Figure(), "figures/empty.png")
    logger._mlflow_client.away = False
    logger.log_metrics({"m": 4.0}, 4)
    logger.finalize("success")
    run, points = history("m")
    assert (
        points == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
        and run.info.status == "FINISHED"
        and run.data.tags["t"] == "x"
    )
    assert [item.path for item in logger.experiment.list_artifacts(run.info.run_id, "figures")] == ["figures/empty.png"]
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == 1 and "MLflow is back" in said


def test_away_at_the_start(logger):
    logger._mlflow_client.away = True
    assert logger.version.startswith("offline-")
    logger.log_metrics({"m": 1.0}, 1)
    logger._mlflow_client.away = False
    logger.log_metrics({"m": 2.0}, 2)
    logger.finalize("success")
    run, points = history("m")
    assert points == [(1, 1.0), (2, 2.0)] and run.info.run_name == "a run" and run.info.status == "FINISHED"


@pytest.mark.parametrize("begun", [True, False])
def test_away_until_the_end(logger, begun, capsys, tmp_path):
    if begun:
        logger.log_metrics({"m": 0.0}, 0)
    logger._mlflow_client.away = True
    logger.log_metrics({"m": 1.0, "other": float("nan")}, 1)
    logger.experiment.log_param(logger.run_id, "p", "5")
    logger.finalize("failed")
    (waiting,) = (tmp_path / "runs/pending").glob("*.jsonl")
    assert f"python -m tracking {waiting.relative_to(tmp_path)}" in capsys.readouterr().err
    assert Outbox.load(waiting).send()
    run, points = history("m")
    assert (
        points == ([(0, 0.0)] if begun else []) + [(1, 1.0)]
        and run.data.params["p"] == "5"
        and run.info.status == "FAILED"
    )


def test_a_mistake_is_not_taken_for_an_absence(logger):
    with pytest.raises(MlflowException, match="[Ii]nvalid"):
        logger.experiment.log_batch(logger.run_id, metrics=[Metric("bad;name", 1.0, 0, 0)])
    logger.log_metrics({"m": 1.0}, 1)
    assert history("m")[1] == [(1, 1.0)]


def test_training_without_a_server(reasoner, tmp_path):
    """The real thing: nothing listens at the address; the run ends well and the file can be sent elsewhere."""
    command = [
        sys.executable, str(ROOT / "main.py"), "fit", f"--config={ROOT}/configs/grpo.yaml", f"--model.policy.model={reasoner}",
        "--model.batch.prompts_per_rollout=2", "--model.batch.group_size=2", "--model.sampling.max_new_tokens=4", "--data.train_size=8",
        "--data.val_size=2", "--trainer.limit_val_batches=0", "--trainer.max_steps=2", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    (waiting,) = (tmp_path / "runs/pending").glob("offline-*.jsonl")
    waiting.write_text(waiting.read_text().replace("http://127.0.0.1:9", os.environ["MLFLOW_TRACKING_URI"]))
    outbox = Outbox.load(waiting)
    assert outbox.send()
    (run,) = outbox.client.search_runs([outbox.client.get_experiment_by_name("lightning-posttrain").experiment_id])
    assert [point.step for point in outbox.client.get_metric_history(run.info.run_id, "train/reward")] == [0, 1]
    assert run.data.params["model.init_args.batch.group_size"] == "2"


def test_what_is_refused_holds_up_nothing_behind_it(logger, capsys, tmp_path):
    """A run that goes on with another setting, begun while the server was away: MLflow does not change a parameter that it has."""
    logger.experiment.log_param(logger.run_id, "max_steps", "10")
    for saved in (False, True):
        logger._mlflow_client.away = True
        logger.experiment.log_param(logger.run_id, "max_steps", "20")
        logger.log_metrics({"m": 1.0 + saved}, int(saved))
        logger._mlflow_client.away = False
        if saved:
            logger.outbox.save(tmp_path / "waiting.jsonl", os.environ["MLFLOW_TRACKING_URI"])
            assert Outbox.load(tmp_path / "waiting.jsonl").send()
        else:
            logger.log_metrics({"n": 0.0}, 0)
        assert "refuses a log_param that waited" in capsys.readouterr().err
    run, points = history("m")
    assert points == [(0, 1.0), (1, 2.0)] and run.data.params["max_steps"] == "10"


def test_what_waits_survives_a_kill(logger):
    """Killed while the server is away: the next start of the run sends what had waited at its last checkpoint."""
    logger.log_metrics({"m": 0.0}, 0)
    logger._mlflow_client.away = True
    logger.log_metrics({"m": 1.0}, 1)
    logger.keep()
    logger.log_metrics({"m": 99.0}, 2)  # after the checkpoint: trained again by the run that goes on
    again = PatientMLFlowLogger("patience", tracking_uri=os.environ["MLFLOW_TRACKING_URI"], run_id=logger.run_id)
    again.log_metrics({"m": 2.0}, 2)
    again.finalize("success")
    run, points = history("m")
    assert points == [(0, 0.0), (1, 1.0), (2, 2.0)] and not list(again.pending.glob("*.jsonl"))


class SeesWaiting(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert trainer.logger._waiting.is_file() == (trainer.fit_loop.epoch_loop.total_batch_idx > 0), (
            "from the first checkpoint on"
        )


def test_every_checkpoint_keeps_what_waits(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([
        "fit", f"--config={ROOT}/configs/grpo.yaml", f"--model.policy.model={reasoner}", "--model.batch.prompts_per_rollout=2", "--model.batch.group_size=2",
        "--model.sampling.max_new_tokens=4", "--data.val_size=4", "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0",
        "--trainer.logger.init_args.tracking_uri=http://127.0.0.1:9",
        "--trainer.callbacks=[{class_path: callbacks.RolloutCheckpoint, init_args: {every_n_rollouts: 1}}, tests.support.test_tracking.SeesWaiting]",
    ])  # fmt: skip
    assert len(list((tmp_path / "runs/pending").glob("*.jsonl"))) == 1


def test_a_checkpoint_never_stands_before_the_metrics_of_its_rollout(reasoner, tmp_path, monkeypatch, empty_store):
    """The process dies between the checkpoint and Lightning's own log of the same rollout."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.db").write_bytes(empty_store.read_bytes())
    log, calls = _LoggerConnector.update_train_step_metrics, []

    def dies(connector):
        calls.append(1)
        if len(calls) == 2:
            raise SystemExit
        log(connector)

    monkeypatch.setattr(_LoggerConnector, "update_train_step_metrics", dies)
    with pytest.raises(SystemExit):
        main([
            "fit", f"--config={ROOT}/configs/grpo.yaml", f"--model.policy.model={reasoner}", "--model.batch.prompts_per_rollout=2",
            "--model.batch.group_size=2", "--model.sampling.max_new_tokens=4", "--data.val_size=4", "--trainer.max_steps=4", "--trainer.accelerator=cpu",
            "--trainer.limit_val_batches=0", "--trainer.logger.init_args.tracking_uri=sqlite:///store.db",
            "--trainer.callbacks=[{class_path: callbacks.RolloutCheckpoint, init_args: {every_n_rollouts: 1}}]",
        ])  # fmt: skip
    assert list((tmp_path / "runs").glob("*/checkpoints/rollout_000002.ckpt"))
    client = mlflow.MlflowClient("sqlite:///store.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lightning-posttrain").experiment_id])
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/reward")]
    assert [step for step, _ in points] == [0, 1], "each once"
