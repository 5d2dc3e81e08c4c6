"""Worked traces of reasoning-gym's questions: judged by reasoning-gym itself."""

import random

import pytest
import reasoning_gym

from datamodules import ReasoningGymPrompts
from datamodules.gym_demonstrations import FAMILIES, SLIPS, WORKED, gym_demonstrations


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_without_slips_lead_to_the_right_answer_and_slips_to_wrong_ones(name):
    data = reasoning_gym.create_dataset(name, size=150, seed=3, **FAMILIES[name])
    rng = random.Random(0)
    scores = [
        [data.score_answer(WORKED[name](entry["question"], rng, slip)[1], entry) for entry in data]
        for slip in (0.0, SLIPS[name])
    ]
    assert min(scores[0]) == 1
    right = sum(score == 1 for score in scores[1]) / len(scores[1])
    assert (0 < right < 0.1) if name == "spell_backward" else (0.6 < right < 0.95)


def test_traces_by_hand():
    rng = random.Random(0)
    assert WORKED["basic_arithmetic"]("Calculate 95 + 712.", rng, 0.0) == ("5+2+0=7, 9+1+0=10, 0+7+1=8", "807")
    assert WORKED["count_bits"]("... of the number 11?", rng, 0.0) == ("11:1, 5:2, 2:2, 1:3", "3")
    assert WORKED["gcd"]("... of these numbers: 12, 18. Give", rng, 0.0) == ("12%18=12, 18%12=6, 12%6=0", "6")
    assert WORKED["letter_counting"]('... letter "a" appear in the text: "Ab cab"?', rng, 0.0) == ("A1b ca2b", "2")
    assert WORKED["spell_backward"]("... (example: sun -> nus): cat", rng, 0.0) == ("1c 2a 3t; 3t 2a 1c", "tac")


def test_held_out_questions_are_in_no_demonstration():
    shown = {row["prompt"] for row in gym_demonstrations(4000, 1)}
    data = ReasoningGymPrompts(dict(FAMILIES), train_size=200, val_size=100, instruction="", seed=0, held_out_by="hash")
    train, val = ({row["prompt"] for row in data.rows(split)} for split in ("train", "val"))
    assert len(data.rows("val")) == 100 and len(data.rows("train")) == 200
    assert not val & shown and not val & train and train & shown
    assert {row["task"] for row in data.rows("val")} == set(FAMILIES)
