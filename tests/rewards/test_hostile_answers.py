"""Answers that would execute something or never end: they are wrong, and the run goes on."""

import inspect
import json
import re

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rewards import MathAnswer, NumericAnswer, ParsableMathAnswer, ReasoningGymScore, answer_process
from rewards.answer_process import judged
from rewards.tasks import COMPUTED, EVALUATED, is_value
from support.errors import ConfigError
from tests.rewards.test_rewards import batch_of


def test_every_task_whose_scorer_evaluates_answers_is_known():
    """Read from the installed package, so that a task that comes with another version is noticed."""
    found = {
        name
        for name, (kind, _) in DATASETS.items()
        if re.search(
            r"\b(eval|exec)\(answer|parse_expr\((user_)?answer|sympify\((user_)?answer", inspect.getsource(kind)
        )
    }
    assert found == EVALUATED | COMPUTED


@pytest.mark.parametrize("task", sorted(EVALUATED | COMPUTED))
def test_an_answer_is_not_executed_and_a_right_one_counts(task, tmp_path):
    entries = [reasoning_gym.create_dataset(task, size=1, seed=seed)[0] for seed in range(2)]
    call = f"__import__('os').mkdir('{tmp_path}/executed')"
    payloads = [
        call,
        f"[{call}]",
        f"[[{call}]]",
        f"{call}+5!",
        f"(lambda: {call})()",
        f"print.__self__.{call}",
        f"1 if {call} else 2",
        f"f'{{{call}}}'",
    ]
    for entry in entries:
        rows = [{"id": "0", "prompt": "?", "entry": json.dumps(entry, default=str)}]
        assert max(ReasoningGymScore()(batch_of(payloads, rows)).tolist()) <= 0.05
        if entry["answer"] is not None:
            right = [entry["answer"], f"so</think><answer>{entry['answer']}</answer>"]
            assert ReasoningGymScore()(batch_of(right, rows)).tolist() == [1, 1]
    assert not (tmp_path / "executed").exists()


def test_what_is_a_value():
    for text in ("[[1, 2], [3]]", "['a', 'b']", "ABC", "-1", "1 0\n0 1", "_ _ Q _"):
        assert is_value(text)
    for text in (
        "f(1)",
        "a.b",
        "a[0]",
        "[x for x in y]",
        "1*2",
        "9**9",
        "lambda: 0",
        "f'{x}'",
        "__builtins__",
        "(a := 1)",
    ):
        assert not is_value(text)
    for text in ("3*(4+5)/2", "x**2/2 + sin(2*x) - C", "-x"):
        assert is_value(text, formula=True)
    for text in (
        "5!",
        "eval(x)",
        "x.y",
        "sin(x).func",
        "'1'",
        "sin(x, evaluate=1)",
        "a[0]",
        "1 if x else 2",
        "(" * 5000,
        "9" * 5000,
        "\x00",
    ):
        assert not is_value(text, formula=True)


def test_answers_that_never_end_are_wrong(monkeypatch):
    monkeypatch.setattr(answer_process, "_process", process := answer_process._Process())
    judged.cache_clear()
    rows = [{"prompt": "?", "answer": "$42$"}]
    assert MathAnswer()(batch_of(["$41+1$", "9**9**9", "$42$"], rows)).tolist() == [1, 0, 1], (
        "the one after it is judged by a new process"
    )
    first = process.child.pid
    entry = reasoning_gym.create_dataset("countdown", size=1, seed=0)[0]
    gym = [{"prompt": "?", "entry": json.dumps(entry)}]
    assert ReasoningGymScore()(batch_of(["9**9**9"], gym)).tolist() == [0]
    assert process.child is None or process.child.pid == first
    assert ParsableMathAnswer()(batch_of(["$42$"], rows)).tolist() == [1]


def test_an_interrupted_question_is_not_answered_by_the_next(monkeypatch):
    monkeypatch.setattr(answer_process, "_process", process := answer_process._Process())
    assert process.ask("equal", "$1$", "$1$") is True
    read = process.child.stdout.readline

    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(process.child, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        process.ask("equal", "$1$", "$2$")
    assert process.child is None and read is not None
    assert process.ask("equal", "$1$", "$1$") is True
    process.child.kill()
    assert process.ask("equal", "$1$", "$1$") in (True, None) and process.ask("equal", "$1$", "$2$") is False


@pytest.mark.parametrize(
    "text",
    [
        "9" * 5000,
        "1/" + "0" * 5000,
        "9" * 5000 + "/" + "9" * 5000,
        "-" * 5000 + "1",
        "1," * 5000,
        "1e99999999",
        "٣",
        "²",
    ],
)
def test_numbers_of_any_length(text):
    assert NumericAnswer()(batch_of([text], [{"prompt": "?", "answer": "7"}])).tolist() == [0]


@pytest.mark.parametrize(
    "entry", ["", "{", "[]", "5", "{}", '{"metadata": {}}', '{"metadata": {"source_dataset": "no_such_task"}}', 7]
)
def test_an_entry_that_is_none_is_refused_by_its_row(entry):
    with pytest.raises(ConfigError, match="row 'x'"):
        ReasoningGymScore().check_columns({"id": "x", "prompt": "?", "entry": entry})
