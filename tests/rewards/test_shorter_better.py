"""ShorterBetter: cases computed by hand, groups that do not see each other, a run with the shipped configuration."""

import pytest
import torch

from rewards import ExactAnswer, ShorterBetter, total_reward
from support import processes
from support.errors import ConfigError
from tests.helpers import run_config
from tests.rewards.helpers import batch_of


def test_the_worked_case():
    batch = batch_of([4, 6, 10], [0, 1, 1])
    reward = ShorterBetter(beta=0.25)
    assert reward.optimal_lengths(batch).tolist() == [6]
    batch.rewards["shorter_better"] = reward(batch)
    total = total_reward([ExactAnswer(weight=2.0), reward], batch.rewards)
    assert total.tolist() == [-0.5, 2.0, 1.0]  # 0 - 2 beta, 2, 2 - 4 beta
    shown = reward.metrics(batch)
    assert shown == {"length/correct": 8, "length/wrong": 4, "sol": 6, "sol_distance": 2, "sol_none_right": 0}


def test_without_a_right_one_the_group_is_held_at_its_mean_and_groups_are_apart():
    batch = batch_of([2, 4, 9, 3, 8, 7], [0, 0, 0, 0, 1, 1], prompts=2)
    reward = ShorterBetter(beta=1.0)
    assert reward.optimal_lengths(batch).tolist() == [5, 7]
    assert reward(batch).tolist() == [-3, -1, -4, -4, -1, 0]
    assert reward.metrics(batch)["sol_none_right"] == 0.5
    turned = batch.take([1, 0])
    assert reward(turned).tolist() == [-4, -1, 0, -3, -1, -4]


def test_there_is_no_bound_below():
    """The authors' numbers: right and 3000 tokens too long earns less than wrong at the optimal length."""
    batch = batch_of([1000, 4000, 1000], [1, 1, 0])
    reward = ShorterBetter()
    batch.rewards["shorter_better"] = reward(batch)
    assert total_reward([ExactAnswer(weight=2.0), reward], batch.rewards).tolist() == pytest.approx(
        [2.0, -1.0, 0.0], abs=1e-5
    )


def test_a_judge_that_is_missing_or_stands_later_is_named():
    with pytest.raises(
        ConfigError, match=r"named 'math_answer', but those before it in model.rewards are \['exact_answer'\]"
    ):
        ShorterBetter(correctness="math_answer")(batch_of([1], [1]))
    with pytest.raises(ConfigError, match="0 or above"):
        ShorterBetter(beta=-1.0)


def test_the_shipped_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    cli = run_config(["shorter_better"], reasoner)
    found, batch = cli.trainer.callback_metrics, cli.model.last_rollout
    lengths = batch.lengths.float().view(2, 4)
    assert not bool(batch.rewards["exact_answer"].any()), "an untrained model"
    assert torch.allclose(
        batch.rewards["shorter_better"].view(2, 4), -0.02 * (lengths - lengths.mean(1, keepdim=True)).abs()
    )
    assert float(found["train/sol"]) == pytest.approx(float(lengths.mean()))
    assert float(found["train/sol_none_right"]) == 1 and "train/length/correct" not in found


def test_means_are_over_all_processes(monkeypatch):
    monkeypatch.setattr(processes, "gathered", lambda part: [part, {"a": (5.0, 1), "b": (0.0, 0)}])
    assert processes.means({"a": torch.tensor([1.0, 3.0]), "b": torch.zeros(0)}) == {"a": 3.0}
