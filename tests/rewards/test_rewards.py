import math

import pytest
import torch

from rewards import (
    ExactAnswer,
    Format,
    FunctionReward,
    MathAnswer,
    NumericAnswer,
    ReasoningGymScore,
    Reward,
    total_reward,
)
from rewards.answers import last_number
from rollouts import RolloutBatch
from support.errors import ConfigError


def batch_of(completions, rows, prompt_text="what ?"):
    one = torch.ones(len(completions), 1, dtype=torch.long)

    return RolloutBatch(
        prompt_ids=torch.ones(len(rows), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(rows), 1, dtype=torch.bool),
        completion_ids=one,
        completion_mask=one.bool(),
        action_mask=one.bool(),
        behaviour_logprobs=torch.zeros(len(completions), 1),
        finish_reasons=["eos"] * len(completions),
        rows=rows,
        decoder=lambda ids, mask: completions if ids is one else [prompt_text] * len(ids),
    )


def test_exact_answer_ignores_reasoning_and_gives_nothing_for_an_unclosed_one():
    rows = [{"prompt": "p", "answer": 12}]
    completions = ["5+7=12</think> 12 ", "12", "x</think>13", "a</think>b</think>12"]
    assert ExactAnswer()(batch_of(completions, rows)).tolist() == [1, 1, 0, 1]
    assert ExactAnswer()(batch_of(completions, rows, "p<think>")).tolist() == [1, 0, 0, 1]


def test_numeric_answer_reads_the_last_number():
    assert [last_number(t) for t in ("is 1,234.", "-2.5 cm", "1/4", "no", "3/0")] == [1234, -2.5, 0.25, None, None]
    rows = [{"prompt": "p", "answer": "so #### 1,200"}]
    assert NumericAnswer()(batch_of(["it is 1200", "1200.0", "1200 or 3", "none"], rows)).tolist() == [1, 1, 0, 0]


def test_math_answer_knows_equal_expressions():
    rows = [{"prompt": "p", "answer": r"\frac{1}{2}"}]
    assert MathAnswer()(batch_of(["$0.5$", r"$\frac{2}{4}$", "$0.6$"], rows)).tolist() == [1, 1, 0]


def test_format_wants_one_closed_reasoning_and_an_answer():
    rows = [{"prompt": "p"}]
    assert Format()(batch_of(["a</think>b", "a</think>", "a", "a</think>b</think>c"], rows)).tolist() == [1, 0, 0, 0]
    with pytest.raises(ConfigError, match="not a regular expression"):
        Format(pattern="(")


def test_plain_function_gets_columns_and_may_abstain():
    def brevity(completions, answer, **kwargs):
        assert set(kwargs) >= {"prompts", "completion_ids", "task"}
        return [None if a is None else -len(c) for c, a in zip(completions, answer, strict=True)]

    rows = [{"prompt": "p", "answer": "x", "task": "t"}, {"prompt": "q"}]
    values = FunctionReward(brevity)(batch_of(["a", "abc", "b", "b"], rows))
    assert values[:2].tolist() == [-1, -3] and values[2:].isnan().all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completions: [1.0], "returned .1,. numbers for 2 completions"),
        (lambda completions: [1.0, math.nan], "returned NaN"),
        (lambda completions: [1.0, math.inf], "is inf"),
    ],
)
def test_a_faulty_function_is_named(function, message):
    with pytest.raises(ConfigError, match=message):
        FunctionReward(function, name="mine")(batch_of(["a", "b"], [{"prompt": "p"}]))


def test_a_class_must_not_return_nan():
    class Broken(Reward):
        def score(self, batch):
            return [math.nan, 0.0]

    with pytest.raises(ConfigError, match="'broken'.*is nan for 1 of 2"):
        Broken()(batch_of(["a", "b"], [{"prompt": "p"}]))


def test_missing_answer_column_and_wrong_import_path():
    with pytest.raises(ConfigError, match="needs the data column 'answer'"):
        ExactAnswer().check_columns({"prompt": "p", "id": "7"})
    with pytest.raises(ConfigError, match="no.such.thing"):
        FunctionReward("no.such.thing")


def test_total_counts_only_rewards_that_apply():
    a, b = FunctionReward(lambda: [], weight=2.0, name="a"), FunctionReward(lambda: [], weight=0.5, name="b")
    total = total_reward(
        [a, b], {"a": torch.tensor([1.0, math.nan, math.nan]), "b": torch.tensor([2.0, 2.0, math.nan])}
    )
    assert total[:2].tolist() == [3.0, 1.0] and math.isnan(total[2])


def test_reasoning_gym_scores_with_its_own_scorer():
    from datamodules import ReasoningGymPrompts

    row = ReasoningGymPrompts({"chain_sum": {}}, train_size=5, val_size=2, seed=0).rows("val")[0]
    good, bad = f"<answer>{row['answer']}</answer>", "<answer>nothing</answer>"
    scores = ReasoningGymScore()(batch_of([good, bad, row["answer"]], [row]))
    assert scores[0] == scores[2] == 1 and scores[1] < 0.5
