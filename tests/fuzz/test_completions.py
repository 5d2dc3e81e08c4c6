"""Any completion gets a finite number from every reward in bounded time, or none where a reward may abstain.

No parser of answers raises.
"""

import json
import time
from typing import get_args

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import rewards
from datamodules.sleep import METRICS
from rewards.answers import answer_text, last_number
from rewards.choices import stated_letter
from rewards.code import code_of
from rewards.instructions import KINDS
from rewards.language import words_by_script
from rewards.math_algebra import NeedsAlgebra
from rewards.math_compare import Unreadable, grade, is_comparable
from rewards.math_text import boxes
from rewards.number_text import numbers
from rewards.quantities import quantity
from rewards.self_verify import verdict_of
from rewards.sleep import Part
from rewards.think_json import object_text, strict_object
from tests.fuzz.shares import cases
from tests.rewards.test_rewards import batch_of

TAGS = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "\\boxed{",
    "}",
    "{",
    "[",
    "```json\n",
    "```",
    "\n</think>\n",
    "<<",
    ">>",
    "P.S.",
    "(A)",
    "answer",
    "yes",
    "\n\n",
    "<|im_end|>",
    "<eos>",
]
LONG = [
    "9" * 5000,
    "[" * 3000,
    '{"a":' * 3000,
    "((((" * 1000,
    "a" * 4000 + "!",
    " " * 4000,
    "\n" * 4000,
    "answer" + " " * 4000,
    "*" * 4000,
    "-" * 4000,
    "answer is " * 500,
    "\\boxed{" * 600,
    "<think>" * 600,
    "</think>" * 600,
    "1," * 2000,
    "1/" * 2000,
    "A" * 3000,
    "(" * 4000,
    "\n \n" * 1500,
    "<<" * 2000,
    "٣" * 2000,
]
PIECES = st.one_of(
    st.text(max_size=30), st.sampled_from(TAGS), st.sampled_from(LONG), st.integers().map(str), st.floats().map(str)
)
COMPLETIONS = st.lists(PIECES, max_size=8).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)

INSTRUCTIONS = [
    {"kind": kind} | extra
    for kind, extra in {
        "keywords": {"words": ["a"]},
        "forbidden_words": {"words": ["b"]},
        "letter": {"character": "a", "at_least": 2},
        "starts_with": {"phrase": "a"},
        "ends_with": {"phrase": "a"},
        "quoted": {},
        "title": {},
        "postscript": {},
        "json": {"keys": ["a"]},
        "case": {"which": "upper"},
        "language": {"script": "LATIN"},
        "no_commas": {},
        "one_of": {"options": ["a"]},
        **{kind: {"at_least": 1} for kind in KINDS if kind.startswith("number_of") or kind == "capital_words"},
    }.items()
]
ROW = {
    "id": "0",
    "prompt": "which longer words ?",
    "answer": "42",
    "task": "sums",
    "clause": "(A || B) && (!C)",
    "choices": ["w", "x", "y", "z"],
    "instructions": INSTRUCTIONS,
    "solution_correct": True,
    "group_size": 4,
    "group_correct": 2,
    "schema": '{"type": "object"}',
    "report": {name: metric.highest for name, metric in METRICS.items()},
}


def every_reward():
    """The rewards of `rewards` that need no model, server or programs; those of lengths read ExactAnswer's scores."""
    made = {
        "LengthPenalty": {"scale": 10},
        "SoftOverlong": {"max_length": 10, "cache": 4},
        "LengthBonus": {"scale": 10},
        "PerTask": {"rewards": {"default": rewards.NumericAnswer()}},
        "FunctionReward": {"function": lambda completions: [len(text) for text in completions]},
        "Guarded": {"reward": rewards.ExactAnswer(), "timeout_s": None},
    }
    parts = [rewards.JsonPart(part) for part in ("parsed", "match", "length", "noise", "exact")]
    parts += [rewards.SleepRubric(part) for part in get_args(Part)]
    elsewhere = {
        "Reward",
        "SleepRubric",
        "JudgedReward",
        "ModelScore",
        "HTTPJudge",
        "DifficultyJudge",
        "CodeTests",
        "ToxicityCost",
        "RecordsReward",
        "RecordsCost",
        "JsonPart",
        "MathAnswer",
        "ParsableMathAnswer",
        "ReasoningGymScore",
        *("TurnRewards", "BalancedVerdict", "CodeFailures", "FinalAnswer", "LikelySummary"),  # of conversations
    }
    for name in rewards.__all__:
        kind = getattr(rewards, name)
        if name in elsewhere or not (isinstance(kind, type) and issubclass(kind, rewards.Reward)):
            continue
        try:
            parts.append(kind(**made.get(name, {})))
        except TypeError:
            pass  # needs lengths of its own method's; its class has its own tests
    return parts


REWARDS = every_reward()


def test_most_rewards_are_fuzzed():
    names = {type(reward).__name__ for reward in REWARDS}
    assert (
        len(names) >= 18
        and {
            "ExactAnswer",
            "NumericAnswer",
            "Format",
            "FilledSchema",
            "MultipleChoice",
            "SatAssignment",
            "InstructionFollowing",
        }
        <= names
    )


@cases("completions", 2)
@given(st.lists(COMPLETIONS, min_size=2, max_size=2), JSON.filter(lambda value: isinstance(value, dict)), st.booleans())
@example(["9" * 5000, "1/" + "9" * 5000], {}, False)
@example(["\ud800", "\x00\x01"], {"a": 1.0}, True)
def test_every_reward_gives_a_number(texts, wanted, opened):
    row = ROW | ({"answer": json.dumps(wanted)} if strict_object(json.dumps(wanted)) is not None else {})
    batch = batch_of(texts, [row], "?<think>" if opened else "?")
    batch.rewards |= {
        reward.correctness: torch.tensor([1.0, 0.0]) for reward in REWARDS if hasattr(reward, "correctness")
    }
    for reward in REWARDS:
        if row["answer"] == "42" and type(reward).__name__ in ("FilledSchema", "JsonPart"):
            continue
        start = time.process_time()
        scores = reward(batch)
        assert scores.shape == (2,) and not scores.isinf().any(), reward.name
        assert reward.may_abstain or reward.max_failure_rate is not None or not scores.isnan().any(), reward.name
        assert time.process_time() - start < 2, f"{reward.name} takes long for {[text[:60] for text in texts]}"


@cases("completions", 2)
@given(COMPLETIONS)
def test_parsers_of_answers_raise_nothing(text):
    (
        answer_text(text, True),
        last_number(text),
        stated_letter(text),
        verdict_of(text),
        words_by_script(text),
        strict_object(object_text(text)),
        numbers(text),
        boxes(text),
        quantity(text),
        code_of(text),
    )
    for gold, completion in (("42", text), ("1, 2", text), ("Evelyn", text), (text, text), (text, "\\boxed{5}")):
        try:
            assert isinstance(grade(gold, completion), bool)
        except (NeedsAlgebra, Unreadable):
            pass
    try:
        assert isinstance(is_comparable(text), bool)
    except NeedsAlgebra:
        pass


@pytest.mark.parametrize("piece", LONG, ids=lambda piece: repr(piece[:8]))
def test_repeated_pieces_take_no_quadratic_time(piece):
    test_every_reward_gives_a_number.hypothesis.inner_test([piece, piece + "x"], {"a": 1}, False)
