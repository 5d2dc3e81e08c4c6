"""MLflow's store goes away at the start, in the middle and at the end; nothing is lost and nothing stops."""

import json
import os
import runpy
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
from support.errors import ConfigError
from tracking.logger import Outbox, PatientMLFlowLogger
from tracking.run_records import record

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    f"--config={ROOT}/configs/grpo.yaml",
    "--model.batch.prompts_per_rollout=2",
    "--model.batch.group_size=2",
    "--model.sampling.max_new_tokens=4",
    "--trainer.limit_val_batches=0",
    "--trainer.accelerator=cpu",
]
CHECKPOINTS = "{class_path: callbacks.RolloutCheckpoint, init_args: {every_n_rollouts: 1}}"


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
    """A real process: nothing listens at the address; the run ends well and the file can be sent elsewhere."""
    small = [*SMALL, "--data.train_size=8", "--data.val_size=2", "--trainer.max_steps=2"]
    command = [sys.executable, str(ROOT / "main.py"), "fit", f"--model.policy.model={reasoner}", *small]
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


def test_a_refused_write_holds_up_nothing_behind_it(logger, capsys, tmp_path):
    """A resumed run with a changed setting, while the server was away: MLflow does not change a stored parameter."""
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


def test_waiting_writes_survive_a_kill(logger):
    """Killed while the server is away: the next start of the run sends the writes of its last checkpoint."""
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


def test_every_checkpoint_keeps_the_waiting_writes(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "--data.val_size=4", "--trainer.max_steps=2"]
    callbacks = f"--trainer.callbacks=[{CHECKPOINTS}, tests.tracking.test_outbox.SeesWaiting]"
    logger = "--trainer.logger.init_args.tracking_uri=http://127.0.0.1:9"
    main(["fit", f"--model.policy.model={reasoner}", *small, logger, callbacks])
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
        small = [*SMALL, "--data.val_size=4", "--trainer.max_steps=4"]
        logger = "--trainer.logger.init_args.tracking_uri=sqlite:///store.db"
        main(["fit", f"--model.policy.model={reasoner}", *small, logger, f"--trainer.callbacks=[{CHECKPOINTS}]"])
    assert list((tmp_path / "runs").glob("*/checkpoints/rollout_000002.ckpt"))
    client = mlflow.MlflowClient("sqlite:///store.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lightning-posttrain").experiment_id])
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/reward")]
    assert [step for step, _ in points] == [0, 1], "each once"


def waiting_file(path, *writes, uri=None):
    """A file of waiting writes, as `Outbox.save` makes it, with these lines after its head."""
    head = {"tracking_uri": uri or os.environ["MLFLOW_TRACKING_URI"], "runs": {}, "real": {}}
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *writes)))
    return path


@pytest.mark.parametrize(
    "write",
    [
        ["delete_experiment", ["0"], {}],
        ["delete_run", ["RUN"], {}],
        ["delete_registered_model", ["GRPO"], {}],
        ["restore_run", ["RUN"], {}],
        ["log_artifacts", ["RUN", "/etc"], {}],
        ["__class__", ["RUN"], {}],
        [["log_param"], ["RUN", "p", "1"], {}],
        ["record", ["RUN", "delete", {}], {}],
        ["record", ["RUN", "__len__", {}], {}],
    ],
    ids=lambda write: str(write[0]),
)
def test_a_file_can_ask_for_nothing_but_the_writes_of_a_training(logger, tmp_path, write):
    """Neither on the command line nor at the start of a run, and nothing before the refused line is sent."""
    write = json.loads(json.dumps(write).replace("RUN", logger.run_id))
    logger.log_metrics({"m": 1.0}, 1)
    harmless = ["log_param", [logger.run_id, "from_file", "1"], {}]
    file = waiting_file(tmp_path / "hostile.jsonl", harmless, write)
    called = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "__getattribute__", lambda client, name: called.append(name))
        with pytest.raises(ConfigError, match=r"hostile\.jsonl, line 3, asks for .*never writes \(allowed are"):
            Outbox.load(file)
        patch.setattr(sys, "argv", ["tracking", str(file)])
        with pytest.raises(SystemExit, match="^error: .*never writes"):
            runpy.run_module("tracking", run_name="__main__")
        with pytest.raises(ConfigError, match="never writes"):
            logger.outbox.take_up(file)
    assert not called and not logger.outbox.queue and file.exists()
    run, points = history("m")
    assert points == [(1, 1.0)] and "from_file" not in run.data.params and run.info.lifecycle_stage == "active"


def test_every_write_of_a_training_passes_through_a_file(logger, tmp_path):
    logger.log_metrics({"m": 0.0}, 0)
    logger._mlflow_client.away = True
    client, run = logger.experiment, logger.run_id
    client.log_metric(run, "one", 1.0, step=1)
    client.log_batch(run_id=run, metrics=[Metric("m", 2.0, 0, 1)])
    client.log_param(run, "p", "5")
    client.set_tag(run, "t", "x")
    (tmp_path / "notes.txt").write_text("text")
    client.log_artifact(run, "notes.txt", "notes")
    client.log_figure(run, Figure(), "figures/empty.png")
    facts = {"name": "d", "digest": "0", "context": "training", "source": {}, "columns": {}, "rows": 1}
    record(client, run, "dataset", facts)
    client.set_terminated(run, "KILLED")
    logger.keep()
    (file,) = (tmp_path / "runs/pending").glob("*.jsonl")
    assert Outbox.load(file).send()
    stored, points = history("m")
    assert sorted(points) == [(0, 0.0), (1, 2.0)] and stored.data.metrics["one"] == 1.0
    assert stored.data.params["p"] == "5" and stored.data.tags["t"] == "x" and stored.info.status == "KILLED"
    assert [entry.dataset.name for entry in stored.inputs.dataset_inputs] == ["d"]
    logger._mlflow_client.away = False
    folders = {item.path for item in logger._mlflow_client.list_artifacts(run)}
    assert {"notes", "figures"} <= folders


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "line 1 is not"),
        ("[]\n", "line 1 is not"),
        ('{"tracking_uri": "sqlite:///x.db", "runs": {}}\n', "line 1 is not"),
        ('{"tracking_uri": "sqlite:///x.db", "runs": {}, "real": {}}\n["log_param", ["r", "p"', "line 2 is not"),
        ('{"tracking_uri": "sqlite:///x.db", "runs": {}, "real": {}}\n["log_param", [], {}]\n', "line 2 is not"),
        (
            '{"tracking_uri": "sqlite:///x.db", "runs": {}, "real": {}}\n'
            '["log_batch", ["r", [{"entity": "Run", "fields": {}}]], {}]\n',
            "line 2 is not",
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "pending.jsonl").write_text(text)
    monkeypatch.setattr(sys, "argv", ["tracking", "pending.jsonl"])
    with pytest.raises(SystemExit, match=f"^error: pending.jsonl .*{message}"):
        runpy.run_module("tracking", run_name="__main__")


def test_the_command_sends_a_file_and_deletes_it(logger, tmp_path, monkeypatch, capsys):
    logger.log_metrics({"m": 1.0}, 1)
    file = waiting_file(tmp_path / "pending.jsonl", ["log_param", [logger.run_id, "late", "yes"], {}])
    monkeypatch.setattr(sys, "argv", ["tracking", str(file)])
    runpy.run_module("tracking", run_name="__main__")
    assert history("m")[0].data.params["late"] == "yes" and not file.exists()
    assert "has been sent" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tracking"])
    with pytest.raises(SystemExit, match="no file is given"):
        runpy.run_module("tracking", run_name="__main__")
