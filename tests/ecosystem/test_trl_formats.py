"""Data sets and reward functions as they are written for TRL, unchanged."""

import json

import pytest
import torch

from datamodules import Demonstrations, FilePrompts, PairSource
from rewards import FunctionReward
from support.errors import ConfigError
from tests.rewards.test_rewards import batch_of

ASK = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "12+30=?"}]


def said(text):
    return [{"role": "assistant", "content": text}]


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Both functions are from TRL's documentation ("Using a custom reward function"), for standard and conversational data.
def reward_len(completions, **kwargs):
    return [-abs(20 - len(completion)) for completion in completions]


def format_reward_func(completions, **kwargs):
    import re

    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def correct(prompts, completions, solution, **kwargs):
    assert all(prompt == ASK for prompt in prompts)
    return [float(completion[0]["content"] == wanted) for completion, wanted in zip(completions, solution, strict=True)]


async def slow(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def test_functions_get_what_trl_gives_them():
    texts, chat = [{"prompt": "12+30=?"}], [{"prompt": ASK, "solution": "42"}]
    assert FunctionReward(reward_len)(batch_of(["a" * 18, "a" * 25], texts)).tolist() == [-2, -5]
    assert FunctionReward(format_reward_func)(batch_of(["<think>a</think><answer>b</answer>", "b"], chat)).tolist() == [
        1,
        0,
    ]
    assert FunctionReward(correct)(batch_of(["42", "41"], chat)).tolist() == [1, 0]
    assert FunctionReward(slow)(batch_of(["abc", "a"], texts)).tolist() == [3, 1]
    assert FunctionReward(reward_len, completions="text")(batch_of(["a" * 18, "a" * 25], chat)).tolist() == [-2, -5]


def test_functions_of_trl_itself():
    rewards = pytest.importorskip("trl.rewards")
    batch = batch_of(["<think>a</think>42", "42"], [{"prompt": ASK, "solution": "42"}])
    assert FunctionReward(rewards.think_format_reward)(batch).tolist() == [1, 0]


def test_prompts_as_messages_with_columns_for_the_rewards(tmp_path):
    data = FilePrompts(
        jsonl(tmp_path / "a.jsonl", *[{"prompt": ASK, "solution": str(i)} for i in range(4)]), val_size=1
    )
    rows = data.rows("train")
    assert [row["solution"] for row in rows] == ["0", "1", "2"] and rows[0]["prompt"] == ASK
    FunctionReward(correct).check_columns(rows[0])
    with pytest.raises(ConfigError, match="needs the data column 'solution'"):
        FunctionReward(correct).check_columns({"prompt": ASK})


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, "The sky is"),
        ({"prompt": ASK, "chosen": said(" blue."), "rejected": said(" green.")}, ASK),
        ({"chosen": ASK + said(" blue."), "rejected": ASK + said(" green.")}, ASK),
    ],
    ids=["texts", "explicit prompt", "implicit prompt"],
)
def test_preferences(tmp_path, row, prompt):
    (pair,) = PairSource(jsonl(tmp_path / "a.jsonl", row), format="trl").rows()
    assert pair == {"id": "0", "prompt": prompt, "response_0": " blue.", "response_1": " green.", "better": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "has no `prompt`.*use format: hh"),
        ({"chosen": ASK + said("a"), "rejected": said("a") + said("b")}, "share all but the last"),
        (
            {"prompt": "p", "chosen": said("a") + said("b"), "rejected": "b"},
            "in 'chosen'; it must be a text, or one message",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": ASK[:1]}, "in 'rejected'"),
        ({"prompt": "p", "chosen": "a"}, "'rejected'"),
        (
            {"prompt": [{"role": "nobody", "content": "x"}], "chosen": "a", "rejected": "b"},
            "a prompt is a text, or a list of messages",
        ),
    ],
)
def test_preferences_of_no_such_form_are_refused(tmp_path, row, message):
    with pytest.raises(ConfigError, match=message):
        PairSource(jsonl(tmp_path / "a.jsonl", row), format="trl").rows()


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "The sky is", "completion": " blue."}, "The sky is"),
        ({"prompt": ASK, "completion": said(" blue.")}, ASK),
        ({"messages": ASK + said(" blue.")}, ASK),
        ({"prompt": "The sky is", "response": " blue."}, "The sky is"),
    ],
    ids=["texts", "prompt and completion", "messages", "this project's"],
)
def test_demonstrations(tmp_path, row, prompt):
    data = Demonstrations(jsonl(tmp_path / "a.jsonl", row, row), val_size=1)
    data.setup("fit")
    (found,) = data.train_data
    assert (found["prompt"], found["response"]) == (prompt, " blue.")


def test_what_ends_with_the_users_message_teaches_nothing(tmp_path):
    with pytest.raises(ConfigError, match="in 'messages'"):
        Demonstrations(jsonl(tmp_path / "a.jsonl", {"messages": ASK}, {"messages": ASK}), val_size=1).setup("fit")


def test_values_stay_floats():
    assert FunctionReward(reward_len)(batch_of(["a"], [{"prompt": "p"}])).dtype == torch.float32
