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
        prompts, prompts == 0, ids, ones, ones, torch.zeros(rows, 1), ["eos"] * rows,
        [{"id": i, "prompt": "?", "task": task, "answer": answer} for i, (task, answer) in enumerate(zip(tasks, answers, strict=True))],
        decoder=lambda ids, mask: [texts[int(i)] for i in ids[:, 0]],
    )  # fmt: skip


def count_a(completions):
    return [float(text.count("a")) for text in completions]


def test_every_task_is_scored_by_its_own_reward_and_scale():
    reward = PerTask({"sum": ExactAnswer(), "default": FunctionReward(count_a)}, scales={"letters": 0.5})
    found = reward(batch(["3", "4", "aa", "b", "aaa", "7"], ["sum", "letters", "sum"], ["3", "x", "7"]))
    assert found.tolist() == [1, 0, 1.0, 0, 0, 1]


def test_a_task_without_a_reward_is_refused_before_sampling():
    with pytest.raises(ConfigError, match="none for the task 'spell'"):
        PerTask({"sum": ExactAnswer()}).check_columns({"id": "1", "task": "spell", "answer": "x"})
    with pytest.raises(ConfigError, match="no rewards"):
        PerTask({})
