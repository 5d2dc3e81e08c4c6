"""Answers that would execute something or never end: they are wrong, and the run goes on."""

import inspect
import json
import re
import signal

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rewards import MathAnswer, NumericAnswer, ParsableMathAnswer, ReasoningGymScore, answer_process
from rewards.answer_process import Pool
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
    monkeypatch.setattr(answer_process, "_pool", pool := Pool(1))
    process = pool.processes[0]
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
    process = answer_process._Process()
    assert process.ask("same", r"\sqrt{4}x", "2x") is True

    def interrupted(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(process, "_line", interrupted)
        process.ask("same", r"\sqrt{4}x", "2x")
    assert process.child is None
    assert process.ask("same", r"\sqrt{4}x", "3x") is False
    process.child.kill()
    assert process.ask("same", r"\sqrt{4}x", "2x") in (True, None) and process.ask("same", r"\sqrt{4}x", "3x") is False


def test_many_answers_are_judged_at_once_and_one_that_hangs_costs_its_limit_once(monkeypatch):
    monkeypatch.setattr(answer_process, "_pool", pool := Pool(2))
    rows = [{"id": str(i), "prompt": "?", "answer": "2^{x}"} for i in range(1024)]
    texts = [r"\boxed{9^{9^{9}}x}" if i % 4 == 0 else rf"\boxed{{2^{{x+{i % 50}}}}}" for i in range(1024)]
    asked = []
    ask = answer_process._Process.ask
    monkeypatch.setattr(
        answer_process._Process, "ask", lambda self, *question: asked.append((self, question)) or ask(self, *question)
    )
    scores = MathAnswer()(batch_of(texts, [rows[0]])).tolist()
    assert [score == 1 for score in scores] == [i % 4 != 0 and i % 50 == 0 for i in range(1024)]
    assert len({question for _, question in asked}) == len(asked) <= 52, "equal answers are judged once"
    assert {process for process, _ in asked} == set(pool.processes)
    before = len(asked)
    assert MathAnswer()(batch_of(texts, [rows[0]])).tolist() == scores and len(asked) == before, "and remembered"


def test_a_judge_that_waits_is_ended_too(monkeypatch):
    monkeypatch.setattr(answer_process, "WALL_SECONDS", 0.2)
    process = answer_process._Process()
    process.ask("same", r"\sqrt{4}x", "2x")
    first = process.child
    first.send_signal(signal.SIGSTOP)
    assert process.ask("same", r"\sqrt{4}x", "2x") is None and first.poll() is not None
    monkeypatch.setattr(answer_process, "WALL_SECONDS", 30.0)
    assert process.ask("same", r"\sqrt{4}x", "2x") is True


SLOW = [pytest.param(task, marks=pytest.mark.long) for task in ("coin_flip", "rubiks_cube")]


@pytest.mark.parametrize("task", ["arc_agi", "rearc", *SLOW, "graph_color", "word_ladder"])
def test_every_scorer_runs_in_another_process_and_pays_its_own_answer(task, monkeypatch):
    """Entries are written as JSON and read again there, which must not make a right answer a wrong one."""
    entry = reasoning_gym.create_dataset(task, size=1, seed=0)[0]
    row = {"id": "0", "prompt": "?", "answer": str(entry["answer"]), "entry": json.dumps(entry, default=str)}
    monkeypatch.setattr("rewards.tasks._scorer", None)
    reward = ReasoningGymScore()
    assert reward.self_check([row]) == []
    endless = ["1e30000000", "x**99999999", "9**9**9", "nan", "(" * 9000, "\x00"]
    assert all(0 <= score < 1 for score in reward(batch_of(endless, [row])).tolist())


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
