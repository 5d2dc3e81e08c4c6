"""open-rs: the cosine at its ends and between, the factory's and the script's wrong side, tags, unreadable answers."""

import math

import pytest
import torch

from rewards import CosineLength, LineFormat, ParsableMathAnswer, TagCount
from support.errors import ConfigError
from tests.helpers import run_config
from tests.rewards.helpers import batch_of


def test_the_worked_cases_of_the_script():
    reward = CosineLength(max_length=100)
    assert [reward.worth(length, True) for length in (0, 50, 100)] == pytest.approx([1, 0.75, 0.5])
    assert [reward.worth(length, False) for length in (0, 50, 100)] == pytest.approx([0, -0.25, -0.5])
    assert reward.worth(200, True) == pytest.approx(0.5) and CosineLength(100, clamp=False).worth(
        200, True
    ) == pytest.approx(1)


def test_the_factory_would_punish_a_short_wrong_answer_most():
    reward = CosineLength(max_length=100, wrong=(-1.0, -0.5))
    assert [reward.worth(length, False) for length in (0, 100)] == pytest.approx([-1, -0.5])


def test_tokens_and_characters():
    batch = batch_of([30, 60, 60], [1, 1, 0])
    batch._completions = ["x" * 60, "x" * 30, "x" * 30]
    quarter = math.cos(math.pi / 4)  # 0.707
    assert CosineLength(60)(batch).tolist() == pytest.approx([0.75, 0.5, -0.5])
    assert CosineLength(120, count="characters")(batch).tolist() == pytest.approx(
        [0.75, 0.75 + 0.25 * quarter, -0.25 + 0.25 * quarter], abs=1e-6
    )
    with pytest.raises(ConfigError, match="1 or above"):
        CosineLength(0)


def test_rows_whose_answer_cannot_be_read_teach_nothing():
    batch = batch_of([3, 9, 3, 9], [0] * 4, prompts=2)
    batch.rows = [{"id": "a", "answer": ""}, {"id": "b", "answer": "12"}]
    batch._completions = ["$12$", "no", "$12$", "no"]
    batch.decoder = lambda ids, mask: ["?"] * len(ids)
    scores = ParsableMathAnswer(name="accuracy")(batch)
    assert scores[:2].isnan().all() and scores[2:].tolist() == [1, 0]
    batch.rewards["accuracy"] = scores
    assert CosineLength(9, correctness="accuracy")(batch).tolist() == pytest.approx([1, 1, 0.875, -0.5])
    batch.rewards["cosine_length"] = torch.tensor([1.0, 1.0, 0.5, -0.5])
    shown = CosineLength(9, correctness="accuracy").metrics(batch)
    assert shown["cosine/correct"] == 0.5 and shown["length/correct"] == 3


def test_tags():
    batch = batch_of([1] * 5, [0] * 5)
    batch._completions = [
        "a\n</think>\nb",
        "<think>\na\n</think>\nb",
        "a</think>b",
        "a\n</think>\nb\n</think>\nc",
        "<think>\n<think>\na",
    ]
    assert LineFormat()(batch).tolist() == [1, 1, 0, 0, 0]
    assert TagCount()(batch).tolist() == [0.5, 1, 0, 0, 0]


def test_the_shipped_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = run_config(["open_rs"], reasoner, **{"trainer.callbacks": "[]"})
    batch = cli.model.last_rollout
    assert not bool(batch.rewards["exact_answer"].any()), "an untrained model"
    expected = [-0.5 + 0.25 * (1 + math.cos(math.pi * length / 96)) for length in batch.lengths.tolist()]
    assert batch.rewards["cosine_length"].tolist() == pytest.approx(expected, abs=1e-6)
    returns = cli.model.returns(batch)
    assert torch.allclose(returns, batch.rewards["format"] + 2 * batch.rewards["cosine_length"])
