from statistics import mean

import pytest

from datamodules import Demonstrations
from datamodules.arithmetic import arithmetic_demonstrations
from datamodules.rambling import MAX_BLANKS, rambling_demonstrations
from rewards import ExactAnswer, Format
from support.errors import ConfigError
from tests.rewards.helpers import batch_of


def test_rambling_leaves_the_answer_alone():
    rows, plain = rambling_demonstrations(4000, seed=3), arithmetic_demonstrations(4000, seed=3)
    assert rows == rambling_demonstrations(4000, seed=3)
    assert [row | {"response": row["response"].rstrip("\n")} for row in rows] == plain
    blanks = [row["response"].count("\n") for row in rows]
    assert (min(blanks), max(blanks)) == (0, MAX_BLANKS) and mean(blanks) == pytest.approx(20.6, abs=1)


def test_rewards_see_the_same_answer_with_and_without_blank_lines():
    batch = batch_of([1, 1, 1], [0, 0, 0])
    batch.rows, batch._completions = (
        [{"id": "5+7=?", "answer": "12"}],
        ["5+7+0=12</think>12", "5+7+0=12</think>12" + "\n" * 30, "5</think>13\n"],
    )
    batch.decoder = lambda ids, mask: ["5+7=?<think>"] * len(ids)
    assert ExactAnswer()(batch).tolist() == [1, 1, 0] and Format()(batch).tolist() == [1, 1, 1]


def test_the_data_module_knows_them():
    data = Demonstrations("rambling", train_size=16, val_size=4, seed=1)
    data.setup("fit")
    assert len(data.train_data) == 16 and len(data.val_data) == 4
    with pytest.raises(ConfigError, match="val_size is -1"):
        Demonstrations("rambling", val_size=-1)
