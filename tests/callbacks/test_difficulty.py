"""Pass rates of all prompts: their history, across a resume and on several processes, and the files written."""

import json

import lightning as L
import mlflow
import pytest
from lightning.pytorch.loggers import MLFlowLogger

from callbacks import DifficultyLedger, RolloutCheckpoint, difficulty
from callbacks.difficulty import pass_rate_figure
from datamodules.pass_rates import Measurement, PassRates
from rewards import FunctionReward
from rollouts import BatchPlan
from support.errors import ConfigError
from tests.helpers import build, digits, fit, sums


def run(reasoner, folder, steps, callbacks=(), ledger=None, reward=digits, refill=0.0, **options):
    """The ledger, the module and the trainer of a training on eight prompts."""
    module = build(reasoner, [FunctionReward(reward)], batch=BatchPlan(4, 4, refill=refill))
    ledger = ledger or DifficultyLedger("digits")
    data = sums(train_size=8, val_size=4)
    return ledger, module, fit(module, steps, [*callbacks, ledger], data=data, folder=folder, **options)


def test_a_resumed_ledger_is_the_uninterrupted_one_and_files_tell_it(reasoner, tmp_path):
    L.seed_everything(3)
    whole, module, _ = run(reasoner, tmp_path / "whole", 5)
    rollout = module.last_rollout
    for i, row in enumerate(rollout.rows):
        number, rate = whole.rates.history[row["id"]][-1]
        assert number == 4 and rate == pytest.approx(sum(digits(rollout.completions[4 * i : 4 * i + 4])) / 4)
    assert sum(map(len, whole.rates.history.values())) == 20 and len(whole.rates) == 8
    # The callback that writes the checkpoint precedes the ledger; the checkpoint still holds the latest rollout.
    run(reasoner, tmp_path / "half", 3, callbacks=[RolloutCheckpoint(folder=str(tmp_path / "saved"))])
    resumed, _, _ = run(reasoner, tmp_path / "rest", 5, ckpt_path=str(tmp_path / "saved/rollout_000003.ckpt"))
    assert resumed.rates.state_dict() == whole.rates.state_dict()
    lines = [json.loads(line) for line in (tmp_path / "rest/local/pass_rates.jsonl").read_text().splitlines()]
    assert {line["id"]: [tuple(pair) for pair in line["history"]] for line in lines} == whole.rates.history
    assert {line["task"] for line in lines} == {"addition-1", "addition-2"}


def first_is_a_digit(completions):
    return [float(text[:1].isdigit()) for text in completions]


def test_groups_that_dynamic_sampling_leaves_out_are_measured_too(reasoner, tmp_path):
    L.seed_everything(3)
    ledger, module, trainer = run(
        reasoner, tmp_path, 1, ledger=DifficultyLedger("first_is_a_digit"), reward=first_is_a_digit, refill=1.0
    )
    extra = int(trainer.callback_metrics["train/extra_prompts"])
    assert extra > 0 and len(ledger.last) == 4 + extra > len(module.last_rollout.rows)
    assert float(trainer.callback_metrics["train/no_signal"]) == sum(m.rate in (0, 1) for m in ledger.last[:4]) / 4


def test_mlflow_gets_the_file_and_the_picture(reasoner, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(tracking_uri=uri, artifact_location=str(tmp_path / "artifacts"))
    run(reasoner, tmp_path, 2, logger=logger)
    client = mlflow.MlflowClient(uri)
    names = {file.path for folder in ("", "figures") for file in client.list_artifacts(logger.run_id, folder)}
    assert {"pass_rates.jsonl", "figures/pass_rates.png"} <= names


def test_every_process_knows_what_all_measured(reasoner, tmp_path, monkeypatch):
    other = Measurement("elsewhere", 0, 0.25, "t", 3)
    monkeypatch.setattr(difficulty, "gathered", lambda own: [[other], own])
    ledger, _, _ = run(reasoner, tmp_path, 1)
    assert ledger.last[0] == other and len(ledger.last) == 5
    assert ledger.rates.latest("elsewhere") == 0.25


def test_a_ledger_without_a_judge_is_refused(reasoner, tmp_path):
    with pytest.raises(ConfigError, match="judges correctness, but model.rewards of GRPO has .'digits'."):
        run(reasoner, tmp_path, 1, ledger=DifficultyLedger())
    with pytest.raises(ConfigError, match="named 'none'"):
        run(reasoner, tmp_path, 1, ledger=DifficultyLedger("none"))
    with pytest.raises(ConfigError, match="keep is 0"):
        DifficultyLedger(keep=0)


def test_pass_rates():
    rates = PassRates(keep=2)
    for rollout, rate in enumerate((0.0, 0.5, 1.0)):
        rates.add(Measurement("a", rollout, rate, "sum", 1))
    rates.add(Measurement("b", 1, 0.25, "product", 2))
    assert rates.history["a"] == [(1, 0.5), (2, 1.0)]
    assert rates.latest("a") == 1.0 and rates.latest("c") is None
    assert rates.mean(["a", "b", "c"]) == 0.625 and rates.mean(["c"]) is None
    assert rates.by("task") == {"product": [(1, 0.25)], "sum": [(1, 0.5), (2, 1.0)]}
    assert list(rates.by("level")) == [1, 2]
    again = PassRates(keep=2)
    again.load_state_dict(rates.state_dict())
    assert again.jsonl() == rates.jsonl() and again.state_dict() == rates.state_dict()


@pytest.mark.parametrize("columns", [{"task": "t"}, {"level": 2}, {}])
def test_the_picture_has_points_for_many_rollouts(columns):
    rates = PassRates()
    for rollout in range(1000):
        rates.add(Measurement(f"p{rollout % 7}", rollout, rollout / 1000, **columns))
    (line,) = pass_rate_figure(rates).axes[0].get_lines()
    x, y = line.get_data()
    assert len(x) == 40 and x[0] == 12 and y[0] == pytest.approx(0.012) and y[-1] == pytest.approx(0.987)
