"""1-shot RLVR: which prompt is chosen from a history, and that a run trains on copies of it alone."""

import json
from itertools import islice
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from callbacks import DifficultyLedger, OneShot, OneShotSampler, RolloutCheckpoint
from callbacks.one_shot import ranked, read_history
from datamodules import PromptSampler
from lightning_modules import KLPenalty, Shaping
from rewards import FunctionReward
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, run_config, sums


def test_the_largest_deviation_comes_first():
    found = ranked({"flat": [1.0] * 4, "first": [0.0, 1.0, 0.0, 1.0], "some": [0.5, 1.0], "tied": [1.0, 0.0]})
    assert [id for id, _ in found] == ["first", "tied", "some", "flat"]
    assert [score for _, score in found] == [0.5, 0.5, 0.25, 0.0]  # of the population: / n


def test_lim_prefers_those_that_follow_the_mean_curve():
    # Means 0.25, 0.5, 1 of the two visited thrice; sum (1 - mean)^2 = 0.5625 + 0.25 + 0.
    rates = {"slow": [0.0, 0.25, 1.0], "quick": [0.5, 0.75, 1.0]}
    assert [score for _, score in ranked(rates, "lim")] == pytest.approx([1 - 0.125 / 0.8125] * 2)
    rates["between"] = [0.25, 0.5, 1.0]
    assert ranked(rates, "lim")[0] == ("between", 1.0)
    assert ranked({"always": [1.0, 1.0]}, "lim") == [("always", 1.0)]


def write(path, histories):
    rows = [
        {"id": id, "task": None, "level": None, "history": [[i, rate] for i, rate in enumerate(h)]}
        for id, h in histories.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_histories_are_read_and_mistakes_refused(tmp_path):
    path = write(tmp_path / "pass_rates.jsonl", {"a": [0.0, 1.0], "b": [0.5]})
    assert read_history(path) == {"a": [0.0, 1.0]} and read_history(path, 1).keys() == {"a", "b"}
    with pytest.raises(ConfigError, match="visited 3 times"):
        read_history(path, 3)
    for text in ("no json", '{"id": "a"}', "[1]"):
        (tmp_path / "other").write_text(text)
        with pytest.raises(ConfigError, match="is not a readable pass_rates.jsonl"):
            read_history(tmp_path / "other")
    with pytest.raises(ConfigError, match="is not a readable pass_rates.jsonl"):
        read_history(tmp_path / "nowhere")
    for options in ({}, {"history": "h", "ids": ["a"]}):
        with pytest.raises(ConfigError, match="either `history`"):
            OneShot(**options)
    with pytest.raises(ConfigError, match="come from PromptSampler"):
        OneShot(ids=["a"]).on_train_start(
            SimpleNamespace(train_dataloader=SimpleNamespace(prompt_sampler=PromptSampler(60, 8, 1))), None
        )
    with pytest.raises(ConfigError, match="no prompt with the id 'c'"):
        OneShot(ids=["c"])._sampler([{"id": "a"}, {"id": "b"}], 2, 0, 0, 1)


def test_a_rollout_is_filled_with_the_chosen_in_turn():
    assert list(OneShotSampler([5], 12, 4, 1)) == [[5] * 4] * 3
    whole = list(OneShotSampler([5, 7, 2], 12, 4, 1))
    assert whole == [[5, 7, 2, 5], [7, 2, 5, 7], [2, 5, 7, 2]]
    first, second = (list(OneShotSampler([5, 7, 2], 12, 4, 1, rank, 2)) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    assert len(list(OneShotSampler([0], 1, 8, 1))) == 1, "the data set may be smaller than a rollout"
    stopped = OneShotSampler([5, 7, 2], 12, 4, 1)
    begun = iter(stopped)
    next(begun)
    again = OneShotSampler([5, 7, 2], 12, 4, 1)
    again.load_state_dict(stopped.state_dict())
    assert list(islice(again, 2)) == whole[1:] and list(again.spare(3)) == []


class Judge(FunctionReward):
    is_correctness = True

    def __init__(self):
        super().__init__(lambda completions: [float(len(text) % 2) for text in completions], name="judge")


def run(reasoner, steps, callbacks, ckpt_path=None, seed=1):
    module = build(
        reasoner, [Judge()], sampling=SamplingParams(max_new_tokens=6), kl=KLPenalty(0.001),
        shaping=Shaping(entropy_bonus=0.001),
    )  # fmt: skip
    drawn = Drawn()
    data = sums((2,), train_size=12, val_size=4, seed=seed)
    return drawn.found, module, fit(module, steps, [*callbacks, drawn], data=data, ckpt_path=ckpt_path)


class Drawn(L.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, *given):
        batch = pl_module.last_rollout
        assert len(batch.rows) == 4 and batch.groups.unique().numel() == 4, "each copy is a group of its own"
        self.found.append([row["id"] for row in batch.rows])


def test_from_a_pools_ledger_to_a_run_on_one_prompt(reasoner, tmp_path, monkeypatch):
    """The whole way: the ledger of a run on the pool is the next run's history, and a resumed run repeats."""
    monkeypatch.chdir(tmp_path)
    L.seed_everything(0)
    pool, _, _ = run(reasoner, 9, [DifficultyLedger()])
    history = next(tmp_path.rglob("pass_rates.jsonl"))
    rates = read_history(history)
    assert len(rates) == 12 and all(len(own) == 3 for own in rates.values()) and len(pool) == 9
    best = max(rates, key=lambda id: torch.tensor(rates[id]).std(unbiased=False))
    whole, one, trainer = run(reasoner, 5, [OneShot(history=str(history))])
    assert whole == [[best] * 4] * 5
    live = (one.last_rollout.rewards["judge"].view(4, 4).std(1) > 0).float().mean()
    assert float(trainer.callback_metrics["train/one_shot_live"]) == pytest.approx(float(live))
    run(reasoner, 2, [OneShot(history=str(history)), RolloutCheckpoint(folder=str(tmp_path))])
    torch.manual_seed(999)
    _, other, _ = run(reasoner, 5, [OneShot(history=str(history))], ckpt_path=str(tmp_path / "rollout_000002.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ConfigError, match="data.seed of the run"):
        run(reasoner, 1, [OneShot(history=str(history))], seed=2)


def test_the_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    unchanged = ("model.batch.prompts_per_rollout", "model.batch.group_size", "data.train_size")
    cli = run_config(["one_shot"], reasoner, unchanged=unchanged, **{"model.sampling.max_new_tokens": 4})
    assert len({row["id"] for row in cli.model.last_rollout.rows}) == 1 and len(cli.model.last_rollout.rows) == 8
