"""Tables of completions in a run that is long."""

import json
from types import SimpleNamespace

import mlflow
import pandas
import pytest
import torch
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from callbacks import CompletionsTable
from callbacks.completions import MAX_TAG_LENGTH, TABLES, newest, table
from objectives import KTAE
from rewards import FunctionReward
from rollouts import RolloutBatch
from tests.helpers import build, digits, fit


def test_the_tag_holds_the_newest_tables_that_fit():
    assert MAX_TAG_LENGTH == MAX_TAG_VAL_LENGTH
    tables = [{"path": f"completions/val_{n:06d}.json", "type": "table"} for n in range(1000)]
    kept = json.loads(newest(tables))
    assert kept == tables[-len(kept) :] and len(json.dumps([tables[0], *kept])) > MAX_TAG_VAL_LENGTH >= len(
        newest(tables)
    )
    assert json.loads(newest(tables[:3])) == tables[:3]


def test_a_short_run_has_tables_with_advantages_of_its_first_and_last_rollout(reasoner, tmp_path):
    module = build(reasoner, [FunctionReward(digits)])
    fit(module, 3, [CompletionsTable(prompts=2)], folder=tmp_path, seed=0)
    tables = sorted((tmp_path / "local/completions").glob("train_*.json"))
    assert [table.name for table in tables] == ["train_000001.json", "train_000003.json"]
    frame = pandas.read_json(tables[1], orient="split")
    expected = module.last_rollout.advantages[:8]
    assert frame["advantage"].tolist() == pytest.approx(expected.tolist())


def test_an_advantage_of_tokens_is_shown_as_its_mean(reasoner):
    module = build(reasoner, [FunctionReward(digits)], advantage=KTAE())
    fit(module, 1, seed=0)
    batch = module.last_rollout
    row = batch.advantages[3][batch.action_mask[3]]
    assert table(batch, 2)["advantage"][3] == pytest.approx(float(row.mean()))


def test_a_run_with_more_tables_than_a_tag_can_name_goes_on(tmp_path, empty_store, monkeypatch):
    store = tmp_path / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    run = client.create_run(client.create_experiment("long", artifact_location=str(tmp_path / "artifacts"))).info.run_id
    before = [{"path": f"completions/val_{n:06d}.json", "type": "table"} for n in range(1, 138)]
    client.set_tag(run, TABLES, json.dumps(before))  # the last list that fits
    ids = torch.zeros(2, 1, dtype=torch.long)
    batch = RolloutBatch(
        prompt_ids=ids, prompt_mask=ids == 0, completion_ids=ids, completion_mask=ids == 0, action_mask=ids == 0,
        behaviour_logprobs=ids.float(), finish_reasons=["eos"] * 2, rows=[{"prompt": "a"}, {"prompt": "b"}],
        decoder=lambda ids, mask: ["x"] * len(ids),
    )  # fmt: skip
    monkeypatch.setattr("callbacks.completions.mlflow_runs", lambda trainer: [(client, run)])
    for done in range(138, 144):
        loops = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=done - 1))
        trainer = SimpleNamespace(
            is_global_zero=True, fit_loop=loops, logger=None, loggers=[], default_root_dir=str(tmp_path),
            sanity_checking=False,
        )  # fmt: skip
        CompletionsTable().on_validation_end(trainer, SimpleNamespace(last_validation=[batch]))
    named = [entry["path"] for entry in json.loads(client.get_run(run).data.tags[TABLES])]
    assert named[-1] == "completions/val_000143.json" and "completions/val_000002.json" not in named
    assert len(client.list_artifacts(run, "completions")) == 6
