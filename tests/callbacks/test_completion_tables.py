"""Tables of completions in a run that is long."""

import json
from types import SimpleNamespace

import mlflow
import torch
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from callbacks import CompletionsTable
from callbacks.completions import MAX_TAG_LENGTH, TABLES, newest
from rollouts import RolloutBatch


def test_the_tag_holds_the_newest_tables_that_fit():
    assert MAX_TAG_LENGTH == MAX_TAG_VAL_LENGTH
    tables = [{"path": f"completions/val_{n:06d}.json", "type": "table"} for n in range(1000)]
    kept = json.loads(newest(tables))
    assert kept == tables[-len(kept) :] and len(json.dumps([tables[0], *kept])) > MAX_TAG_VAL_LENGTH >= len(
        newest(tables)
    )
    assert json.loads(newest(tables[:3])) == tables[:3]


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
            is_global_zero=True, fit_loop=loops, logger=None, default_root_dir=str(tmp_path), sanity_checking=False
        )
        CompletionsTable().on_validation_end(trainer, SimpleNamespace(last_validation=[batch]))
    named = [entry["path"] for entry in json.loads(client.get_run(run).data.tags[TABLES])]
    assert named[-1] == "completions/val_000143.json" and "completions/val_000002.json" not in named
    assert len(client.list_artifacts(run, "completions")) == 6
