"""A reward for every task family."""

import pytest
import torch

from rewards import ExactAnswer, FunctionReward, PerTask
from rollouts import RolloutBatch
from support.errors import ConfigError


def batch(texts, tasks, answers):
    rows = len(texts)
    ids = torch.arange(rows)[:, None]
    ones = torch.ones_like(ids, dtype=torch.bool)
    prompts = torch.zeros(len(tasks), 1, dtype=torch.long)
    return RolloutBatch(
        prompts,
        prompts == 0,
        ids,
        ones,
        ones,
        torch.zeros(rows, 1),
        ["eos"] * rows,
        [
            {"id": i, "prompt": "?", "task": task, "answer": answer}
            for i, (task, answer) in enumerate(zip(tasks, answers, strict=True))
        ],
        decoder=lambda ids, mask: [texts[int(i)] for i in ids[:, 0]],
    )


def count_a(completions):
    return [float(text.count("a")) for text in completions]


def test_every_task_is_scored_by_its_own_reward_and_scale():
    reward = PerTask({"sum": ExactAnswer(), "default": FunctionReward(count_a)}, scales={"letters": 0.5, "sum": 2.0})
    given = batch(["3", "4", "aa", "b", "aaa", "7"], ["sum", "letters", "sum"], ["3", "x", "7"])
    found = reward(given)
    assert found.tolist() == [2, 0, 1, 0, 0, 2]
    assert reward.unscaled(found, given).tolist() == [1, 0, 2, 0, 0, 1]


def test_the_level_that_a_curriculum_appends_is_not_part_of_the_family():
    row = {"id": "1", "task": "chain_sum-3", "level": 3, "answer": "x"}
    PerTask({"chain_sum": ExactAnswer()}).check_columns(row)
    with pytest.raises(ConfigError, match="none for the task 'chain_sum-3'"):
        PerTask({"chain_sum": ExactAnswer()}).check_columns(row | {"level": 4})


def test_what_would_not_act_is_refused():
    with pytest.raises(ConfigError, match="has a weight, which would not act"):
        PerTask({"sum": ExactAnswer(weight=0.5)})
    with pytest.raises(ConfigError, match="addtion: 0.5"):
        PerTask({"sum": ExactAnswer()}, scales={"addtion": 0.5})
    with pytest.raises(ConfigError, match="above 0"):
        PerTask({"sum": ExactAnswer()}, scales={"sum": 0.0})
    assert (
        PerTask({"sum": ExactAnswer()}).is_correctness and not PerTask({"sum": FunctionReward(count_a)}).is_correctness
    )


def test_a_task_without_a_reward_is_refused_before_sampling():
    with pytest.raises(ConfigError, match="none for the task 'spell'"):
        PerTask({"sum": ExactAnswer()}).check_columns({"id": "1", "task": "spell", "answer": "x"})
    with pytest.raises(ConfigError, match="no rewards"):
        PerTask({})
