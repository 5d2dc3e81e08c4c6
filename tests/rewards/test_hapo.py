"""HAPO: the length reward and the memory by hand, several processes, and a resumed run."""

import lightning as L
import pytest
import torch

from callbacks import RolloutCheckpoint
from rewards import HAPO, ExactAnswer, FunctionReward, NgramRepetition, hapo, total_reward
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, run_config, sgd, sums, weights
from tests.rewards.helpers import batch_of


def remembering(**history):
    reward = HAPO(**{name: history.pop(name) for name in ("shape", "history") if name in history})
    reward.load_state_dict({"history": {id: [tokens, 1] for id, tokens in history.items()}})
    return reward


def test_the_worked_cases():
    batch = batch_of([8, 16, 4, 16, 4, 12, 40], [1, 1, 0, 0, 1, 0, 0])
    found = remembering(p0=8.0)(batch).tolist()
    half = 2**-0.5  # the cosine of 45 degrees
    assert found == pytest.approx([0, -0.7, 0, -1, half, -half, -1], abs=1e-6)


def test_with_weight_one_the_order_of_right_and_wrong_is_kept():
    lengths = [1, 5, 10, 15, 19, 20, 21, 60]
    batch = batch_of(lengths * 2, [1] * 8 + [0] * 8)
    reward = remembering(p0=10.0)
    batch.rewards["hapo"] = reward(batch)
    total = total_reward([ExactAnswer(), reward], batch.rewards)
    assert float(total[:8].min()) == pytest.approx(0.3) and float(total[8:].max()) == 0
    with pytest.raises(ConfigError, match="between 0 and 1"):
        HAPO(weight=1.5)


def test_the_linear_form():
    batch = batch_of([5, 10, 11, 13, 30, 5, 11, 13, 30], [1] * 5 + [0] * 4)
    assert remembering(shape="linear", p0=10.0)(batch).tolist() == pytest.approx(
        [0.5, 0, 0, -0.2, -0.7, 0, 0, -0.2, -1], abs=1e-6
    )


def test_the_first_visit_knows_nothing_and_the_memory_is_the_shortest_right_one():
    reward = HAPO()
    first = batch_of([4, 6, 9, 3, 5, 7], [0, 1, 1, 0, 0, 0], prompts=2, ids=["a", "b"])
    first.rewards["hapo"] = reward(first)
    assert first.rewards["hapo"].tolist() == [0] * 6
    shown = reward.metrics(first)
    assert shown["hapo_known"] == 0 and "hapo_history" not in shown and "hapo_reward/correct" not in shown
    reward.observe(first)
    assert reward.history == {"a": (6.0, 2)}
    second = batch_of([3, 12, 5, 8], [1, 1, 1, 0], prompts=2, ids=["a", "b"])
    second.rewards["hapo"] = reward(second)
    assert second.rewards["hapo"].tolist() == pytest.approx([2**-0.5, -0.7, 0, 0], abs=1e-6)
    shown = reward.metrics(second)
    assert (shown["hapo_known"], shown["hapo_history"], shown["hapo_ratio"]) == (0.5, 6, 1.25)
    reward.observe(second)
    assert reward.history == {"a": (3.0, 4), "b": (5.0, 1)}
    reward.observe(batch_of([50], [1], ids=["a"]))
    assert reward.history["a"] == (3.0, 5)


def test_the_mean_as_history():
    reward = HAPO(history="mean")
    reward.observe(batch_of([4, 8, 99], [1, 1, 0], ids=["a"]))
    reward.observe(batch_of([3], [1], ids=["a"]))
    assert reward.history == {"a": (5.0, 3)}


def test_every_process_learns_what_all_found(monkeypatch):
    reward = HAPO()
    monkeypatch.setattr(hapo, "gathered", lambda own: [{"a": [9], "c": [2]}, own])
    reward.observe(batch_of([7, 5], [1, 0], ids=["a"]))
    assert reward.history == {"a": (7.0, 2), "c": (2.0, 1)}


def test_repeated_n_grams():
    batch = batch_of([8, 6], [0, 0], token_ids=[[1, 2, 3, 9, 1, 2, 3, 8], [1, 2, 3, 4, 5, 6]])
    assert NgramRepetition()(batch).tolist() == [-0.75, 0]
    assert NgramRepetition().share([5, 5, 5, 5]) == 1 and NgramRepetition().share([]) == 0


def even(completions):
    return [float(sum(map(ord, text)) % 2 == 0) for text in completions]


def run(reasoner, folder, steps, ckpt_path=None, callbacks=()):
    module = build(
        reasoner,
        [FunctionReward(even), HAPO(correctness="even")],
        sampling=SamplingParams(max_new_tokens=24),
        optimizer=sgd(0.3),
    )
    seen, data = Histories(), sums(train_size=8, val_size=4)
    fit(module, steps, [*callbacks, seen], data=data, folder=folder, validate_every=2, ckpt_path=ckpt_path)
    return module, seen.found


class Histories(L.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, *given):
        known = float(trainer.callback_metrics["train/hapo_known"])
        self.found.append((known, {id: tokens for id, (tokens, _) in pl_module.rewards[1].history.items()}))


def test_a_resumed_run_remembers_and_histories_never_grow(reasoner, tmp_path):
    whole, seen = run(reasoner, tmp_path / "whole", 6)
    assert [known for known, _ in seen[:2]] == [0, 0] and all(known > 0 for known, _ in seen[2:]), (
        "two rollouts are an epoch"
    )
    for (_, before), (_, after) in zip(seen, seen[1:], strict=False):
        assert all(after[id] <= tokens for id, tokens in before.items())
    drawn = {row["id"] for row in whole.last_rollout.rows}
    assert len(drawn) == 4 and set(seen[-1][1]) <= {row["id"] for row in whole.trainer.datamodule.rows("train")}, (
        "validation leaves no trace"
    )
    run(reasoner, tmp_path / "half", 3, callbacks=[RolloutCheckpoint(folder=str(tmp_path / "saved"))])
    resumed, rest = run(reasoner, tmp_path / "rest", 6, ckpt_path=str(tmp_path / "saved/rollout_000003.ckpt"))
    assert rest == seen[3:]
    assert torch.equal(weights(whole), weights(resumed))


def test_the_shipped_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run_config(["hapo"], reasoner, **{"trainer.callbacks": "[]"})
    assert isinstance(cli.model.rewards[1], HAPO) and float(cli.trainer.callback_metrics["train/hapo_known"]) == 0
