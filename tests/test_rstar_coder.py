"""rStar-Coder in small: programs on many inputs, the vote, the data step with bad input, resuming, the chain."""

import collections
import itertools
import json
import random
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from assets import rstar_coder
from assets.decontamination import Decontamination
from assets.kept_texts import KeptTexts, described
from assets.many_inputs import Program, RunLimits, literal, run_many
from assets.mutual_verification import Agreement, program_in, vote
from assets.problem_inputs import InputPlan, make_inputs
from assets.writers import ModelWriter, RuleWriter, Writer
from datamodules import Demonstrations, FilePrompts, WordPrograms
from datamodules.prompts import PromptData
from datamodules.word_programs import draw_prompts, oracle, solution, steps_of
from main import main
from policies import PolicyParams
from rewards import CodeTests
from rewards.sandbox import Limits, SandboxError, run
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.ecosystem.test_trl_formats import jsonl
from tests.helpers import ROOT

QUICK = RunLimits(Limits(wall_s=0.7, cpu_s=1, output_kb=4))
FEW = InputPlan(largest_exponent=1, per_scale=1, at_least=3)
GENERATOR = "def generate(scale, seed): return [scale * 10 + seed]\ndef valid(x): return x != 30\n"


def statuses(outcomes):
    return [one.status for one in outcomes]


# ---- programs on many inputs -----------------------------------------------------------------------------------------

READERS = [
    "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "text = input()\nprint(text[::-1], end='  \\n\\n')\nif text == '22':\n    raise SystemExit(3)",
    "import atexit, threading\natexit.register(print, 'last')\n"
    "threading.Thread(target=lambda: print(int(input()))).start()",
    "import sys\nfrom dataclasses import dataclass\n@dataclass\nclass A: x: int\nprint(A(int(input())))\nsys.exit(0)",
]


@pytest.mark.parametrize("source", READERS)
def test_a_program_that_reads_and_prints_does_what_it_does_alone(source):
    inputs = ["1\n", "22\n", "", "333"]
    outcomes = run_many(Program(source), inputs, QUICK, max_failures=9)
    for text, outcome in zip(inputs, outcomes, strict=True):
        alone = run(source, text)
        assert (outcome.status, outcome.value) == (alone.status, alone.stdout if alone.status == "ok" else None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x): return 6 // (x - 1)", ["ok", "error", "ok", "ok"]),
        ("import time\ndef f(x):\n    if x == 2: time.sleep(9)\n    return x", ["ok", "ok", "timeout", "ok"]),
        ("def f(x):\n    while x == 1: pass\n    return x", ["ok", "timeout", "ok", "ok"]),
        ("def f(x): return 'x' * 10**(4 * (x == 1))", ["ok", "output", "ok", "ok"]),
        ("def f(x):\n    print('x' * 10**6)\n    return x", ["ok"] * 4),
        ("def f(x): return [0] * 10**(9 * (x == 3))", ["ok", "ok", "ok", "memory"]),
        ("import os\ndef f(x):\n    if x == 1: os._exit(0)\n    return x", ["ok", "error", "ok", "ok"]),
        ("def f(x): raise SystemExit if x else 1", ["error"] * 4),
        ("def f(x): return object() if x == 2 else x", ["ok", "ok", "not plain data", "ok"]),
        ("def f(x): return float('nan')", ["not plain data"] * 4),
        ("def f(x): return 9**4999 if x else '\\ud800'", ["not plain data"] * 4),
        ("def f(): return 1", ["error"] * 4),
        ("f = 3", ["no function"] * 4),
        ("def f(x): return [", ["syntax error"] * 4),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", ["error", *["not run"] * 3]),
    ],
)
def test_every_call_of_a_function_has_its_own_status(source, expected):
    outcomes = run_many(Program(source, "f"), [[0], [1], [2], [3]], QUICK, max_failures=9)
    assert statuses(outcomes) == expected


def test_failures_end_a_run_after_the_number_that_is_allowed():
    for allowed, expected in ((1, ["ok", "error", "not run", "not run"]), (2, ["ok", "error", "error", "not run"])):
        outcomes = run_many(Program("def f(x): return 1 // (x % 3 == 0)", "f"), [[0], [1], [2], [3]], QUICK, allowed)
        assert statuses(outcomes) == expected
    not_a_number = Program("def f(x): return float('nan')", "f")
    assert statuses(run_many(not_a_number, [[0], [1]], QUICK)) == ["not plain data", "not run"]
    assert run_many(not_a_number, [], QUICK) == []


def test_a_program_without_end_is_stopped_once_for_all_inputs():
    """It stops its runner, which cannot stop it then."""
    stopper = Program("import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)")
    outcomes = run_many(stopper, ["a", "b"], RunLimits(QUICK.input, total_s=1.0), max_failures=9)
    assert statuses(outcomes) == ["timeout", "not run"]


def test_equal_values_have_equal_texts_that_mean_the_same():
    values = [
        *([1, "a'\n", b"\0", None, True], (), (1,), {}, set(), frozenset(), {1: [2.5], "x": {3}}, float("inf"), -0.0),
        *(2 + 3j, {(1, 2): frozenset({"b", "a"})}, [[[]]], "ü\u2028"),
    ]
    assert [eval(literal(value)) for value in values] == values
    assert literal({2, 1}) == literal({1, 2}) and literal({"b": 1, "a": 2}) == literal({"a": 2, "b": 1})
    assert literal(0.0) == literal(-0.0)
    assert len({literal(value) for value in (1, 1.0, True, "1", [1], (1,), {1})}) == 7
    for value in (float("nan"), [float("nan")], 10**5000, "\ud800", complex("nan")):
        with pytest.raises(ValueError):
            literal(value)


# ---- the vote --------------------------------------------------------------------------------------------------------


def test_the_vote_is_that_of_a_slow_reference():
    rng = random.Random(0)
    for _ in range(300):
        vectors = [tuple(rng.choice(["a", "a", "b", None]) for _ in range(2)) for _ in range(rng.randint(1, 8))]
        programs = [rng.choice("pqr") for _ in vectors]
        total, threshold = len(vectors) + rng.randint(0, 2), rng.choice([0.4, 0.6])
        result = vote(vectors, programs, total, threshold, 2)
        agree = {
            mine: [
                place
                for place, theirs in enumerate(vectors)
                if all(a == b is not None for a, b in zip(mine, theirs, strict=True))
            ]
            for mine in vectors
        }
        sizes = sorted((len(places) for places in agree.values()), reverse=True)
        assert result.agreement == sizes[0] / total
        accepted = [
            vector
            for vector, places in agree.items()
            if len(places) >= threshold * total - 1e-9
            and len({programs[place] for place in places}) >= 2
            and sum(len(others) >= len(places) for others in agree.values() if others) == 1
        ]
        assert ([] if result.refusal else [result.vector]) == accepted


def test_failures_never_agree_and_thresholds_follow_the_rating():
    failed = [("1", None)] * 16
    assert vote(failed, list("abcdefghijklmnop"), 16, 0.4, 2).refusal == "every candidate failed on an input"
    plan = Agreement()
    assert [plan.threshold({"rating": rating}) for rating in (None, 1600, "1601", 2400.0)] == [0.6, 0.6, 0.4, 0.4]
    nine, ten = [[("1",)] * count + [(str(n),) for n in range(2, 18 - count)] for count in (9, 10)]
    texts = list("abcdefghijklmnop")
    assert vote(nine, texts, 16, 0.6, 2).refusal and vote(nine, texts, 16, 0.4, 2).refusal == ""
    assert vote(ten, texts, 16, 0.6, 2) == vote(ten, texts, 16, 0.6, 10)
    assert vote(ten, texts, 17, 0.6, 2).refusal == "agreement below the threshold", "a missing candidate counts"
    assert vote(ten, ["a"] * 16, 16, 0.6, 2).refusal == "too few different programs agree"
    assert vote([("1",)] * 2 + [("2",)] * 2, texts[:4], 4, 0.4, 2).refusal.endswith("are equally common")


def test_a_candidate_without_a_function_is_not_run():
    problem = {"prompt": "Add one.", "entry_point": "f"}
    for text in ("no code", "```python\nprint(1)\n```", "def g(x): return 1"):
        assert program_in(problem, text) == (None, "no function")
    assert program_in({"prompt": "p"}, "```\n\n```") == (None, "no code")
    begun = {"prompt": "import math\ndef f(x):\n", "entry_point": "f"}
    assert "return 3" in program_in(begun, "    return 3")[0].source, "a continuation of the prompt's code"


def test_sixteen_words_in_a_row_are_contamination():
    words = [f"w{number}" for number in range(40)]
    known = Decontamination([" ".join(words), "Sum of two numbers."])
    assert known.shared("x y " + ", ".join(words[5:21]).upper() + " z")
    assert not known.shared("x y " + " ".join(words[5:20]) + " z " + " ".join(words[21:36]))
    assert known.shared([{"role": "user", "content": "sum of two\n numbers"}])
    assert not known.shared("Sum of two numbers or three") and not known.shared("?")


# ---- inputs ----------------------------------------------------------------------------------------------------------


def made(generator, **problem):
    plan = InputPlan(largest_exponent=1, per_scale=1, at_least=1, max_kb=1)
    inputs = make_inputs({"entry_point": "f"} | problem, generator, plan, QUICK)
    total = collections.Counter()
    for counts in inputs.counts.values():
        total.update(counts)
    return [each if isinstance(each, str) else each[0] for each in inputs.values], dict(total)


def test_inputs_are_valid_different_and_of_every_scale():
    assert InputPlan().scales == [*range(1, 10), 10, 100, 1000, 10_000, 100_000]
    values, counts = made(GENERATOR)
    assert values == [10, 20, *range(40, 110, 10)] and counts == {"valid": 9, "invalid": 1}
    values, counts = made("", inputs=[[5], [30], [5]], validator=GENERATOR)
    assert values == [5] and counts == {"valid": 1, "invalid": 1, "duplicate": 1}
    reads = "def generate(scale, seed): return f'{scale}\\n'\ndef valid(text): return int(text) > 8"
    assert made(reads, entry_point=None) == (["9\n", "10\n"], {"valid": 2, "invalid": 8})


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        ("def generate(scale, seed): return 1 / 0", {"error": 10}),
        ("def generate(scale, seed): return [scale]\n1 / 0", {"error": 10}),
        ("def generate(scale, seed):\n    while scale > 8: pass\n    return [scale]", {"valid": 8, "timeout": 2}),
        ("def generate(scale, seed): return ['x' * 10**min(scale, 5)]", {"valid": 3, "output": 7}),
        ("def generate(scale, seed): return ['x' * 2000]", {"too long": 10}),
        ("def generate(scale, seed): return str(scale)", {"wrong type": 10}),
        ("def generate(scale, seed): return None", {"wrong type": 10}),
        ("def generate(scale, seed): return [1]", {"valid": 1, "duplicate": 9}),
        ("def generate(scale, seed): return [scale]\ndef valid(x): return False", {"invalid": 10}),
        ("def generate(scale, seed): return [scale]\ndef valid(x): return x", {"invalid": 10}),
        ("def generate(scale, seed): return [scale]\ndef valid(x): raise ValueError", {"validator: error": 10}),
        ("def generate(scale, seed): return [scale]\ndef valid(x):\n    while x == 3: pass\n    return True",
         {"valid": 9, "validator: timeout": 1}),
        ("print('x' * 10**6)\ndef generate(scale, seed): return [scale]", {"valid": 10}),
        ("def other(): pass", {"no function": 10}),
        ("def (", {"syntax error": 10}),
        ("import os\nos.kill(os.getppid(), 9)", {"error": 1, "not run": 9}),
    ],
)  # fmt: skip
def test_a_bad_generator_is_counted_and_what_it_made_before_is_kept(generator, expected):
    values, counts = made(generator)
    assert counts == expected and len(values) == expected.get("valid", 0)


# ---- the data step ---------------------------------------------------------------------------------------------------


class Rows(PromptData):
    def __init__(self, *rows):
        super().__init__(seed=0)
        self.listed = list(rows)

    def train_rows(self):
        return self.listed

    val_rows = train_rows


class Told(Writer):
    """Writes what it is told, by the problem's id."""

    def __init__(self, texts):
        super().__init__("told")
        self.texts_by_id, self._asked = texts, []

    def write(self, rows, samples, seed):
        self._asked += [str(row["id"]) for row in rows]
        return [self.texts_by_id.get(row["id"], [])[:samples] for row in rows]


def function(name, prompt, **more):
    return {"id": name, "prompt": prompt, "entry_point": "f", "generator": GENERATOR} | more


DOUBLE = ["def f(x): return x * 2", "def f(x):\n    return x + x", "def f(x): return sum([x] * 2)"]
SLOW = "def f(x):\n    for _ in range(300000): pass\n    return x * 2"
ECHO = "def generate(scale, seed): return f'{scale}\\n'"
PROBLEMS = [
    function("double", "Double x."),
    {"id": "reads", "prompt": "Print it.", "generator": ECHO, "rating": 2000},
    function("seed", "Negate x.", oracle="def f(x): return -x if x != 50 else 1 / 0"),
    function("unsolved", "Square x.", oracle="def f(x): return x * x"),
    function("split", "Unclear."),
    function("empty", "No inputs.", generator="def generate(scale, seed): return None"),
    function("silent", "Nothing."),
    function("again", "double  X."),
    function("known", "A benchmark's problem."),
]
TEXTS = {
    "double": [SLOW, *DOUBLE, "no code"],
    "reads": ["print(input())", "print(input() + '  ')", "print(7)", "print(8)", "while True: pass"],
    "seed": ["def f(x): return -x", "def f(x): return 0 - x", "def f(x): return x"],
    "unsolved": ["def f(x): return x", "def f(x): return x + 1"],
    "split": ["def f(x): return 1", "def f(x): return 2", "def f(x): return 1.0", "def f(x): return [", "f = 1"],
    "empty": DOUBLE,
}


def step(folder, problems=PROBLEMS, texts=TEXTS, **changes):
    options = {"writers": [Told(texts)], "samples": 5, "inputs": FEW, "limits": QUICK, "workers": 1}
    options |= {"benchmarks": [Rows({"prompt": "a benchmark's problem"})]}
    rstar_coder.main(Rows(*problems), str(folder / "data.parquet"), **(options | changes))
    rows = pyarrow.parquet.read_table(folder / "data.parquet").to_pylist()
    dropped = [json.loads(line) for line in (folder / "data.dropped.jsonl").read_text().splitlines()]
    return rows, dropped, json.loads((folder / "data.report.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, *step(folder)


def test_verified_solutions_are_kept_with_tests_that_they_pass(done):
    folder, rows, _, _ = done
    named = {row["id"]: row for row in rows}
    assert list(named) == ["double", "reads", "seed/0", "seed/1", "unsolved/0", "unsolved/1"]
    assert named["double"]["response"] in DOUBLE and named["double"]["agreement"] == 0.8, "not the slow one"
    assert named["reads"]["response"].startswith("print(input()") and named["reads"]["agreement"] == 0.4
    assert named["reads"]["cases"] == [{"input": f"{n}\n", "output": f"{n}"} for n in range(1, 11)]
    assert named["unsolved/0"]["tests"].splitlines()[0] == "assert f(*[10]) == 100"
    assert "50" not in named["seed/0"]["tests"], "the oracle fails there"
    demonstrations = Demonstrations(str(folder / "data.parquet"), val_size=2, seed=0)
    demonstrations.setup("fit")
    assert [row["response"] for row in demonstrations.train_data] == [row["response"] for row in rows[:4]]
    data = FilePrompts(str(folder / "data.parquet"), val_size=0, seed=0)
    scores = {}
    for row in data.rows("train"):
        reward = CodeTests(limits=QUICK.input)
        reward.check_columns(row)
        columns = {name: [row[name]] for name in ("tests", "entry_point", "cases")}
        scores[row["id"]] = reward.evaluate([row["response"]], [row["prompt"]], **columns)[0]
    assert scores == {name: float(row["verified"]) for name, row in named.items()}


def test_the_report_accounts_for_every_problem_and_candidate(done):
    _, rows, dropped, report = done
    assert {one["id"]: (one["stage"], one["reason"]) for one in dropped} == {
        "split": ("outputs", "agreement below the threshold"),
        "empty": ("inputs", "no valid input"),
        "silent": ("candidates", "no candidate was written"),
        "again": ("problems", "the prompt of another problem"),
        "known": ("decontamination", "in a benchmark"),
    }
    left = len(PROBLEMS)
    for stage in report["stages"]:
        assert stage["in"] == left and stage["in"] - stage["out"] == sum(stage["dropped"].values())
        left = stage["out"]
    assert left == len({row["prompt"] for row in rows}) == 4 and report["solutions"] == len(rows)
    # Of double 4, of reads 2, of the seed 2, and of the split vote the first of the three vectors.
    assert report["candidates"]["agree"] == 4 + 2 + 2 + 1 and report["candidates"]["other outputs"] == 2 + 1 + 2 + 2
    assert report["candidates"]["no function"] == 2 and report["candidates"]["syntax error"] == 1
    assert report["candidates"]["timeout"] == 1 and report["candidates"]["missing"] == 2 + 3
    assert sum(report["candidates"].values()) == 5 * 5
    assert report["inputs"]["3"]["invalid"] == 4 and report["inputs"]["all"] == {"the oracle failed": 1}


def test_a_seed_problem_may_be_dropped_or_have_fewer_solutions(tmp_path):
    rows, dropped, _ = step(tmp_path, PROBLEMS[2:4], unsolved_seeds=False, keep_seed=1)
    assert [row["id"] for row in rows] == ["seed"]
    assert [(one["id"], one["reason"]) for one in dropped] == [("unsolved", "no candidate passes all tests")]


def test_the_vote_is_judged_where_there_is_an_oracle(tmp_path):
    more = {"seed": TEXTS["seed"][:2], "unsolved": ["def f(x): return x+1", "def f(x): return 1+x"]}
    _, _, report = step(tmp_path, PROBLEMS[2:4], more, samples=2)
    assert report["oracle"] == {"labels": 8 + 9, "right": 8}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    problems = [function("double", "Double."), function("triple", "Triple."), function("same", "Same."), PROBLEMS[6]]
    texts = {"double": DOUBLE[:2], "triple": ["def f(x): return x*3", "def f(x): return 3*x"]}
    texts |= {"same": ["def f(x): return x", "def f(x): return +x", "def f(x): return -x"]}
    checked, real, until = [], rstar_coder.check_problem, [2]

    def counted(problem, *arguments):
        if len(checked) == until[0]:
            raise KeyboardInterrupt
        checked.append(problem["id"])
        return real(problem, *arguments)

    def results(folder, **changes):
        rows, dropped, report = step(folder, problems, texts, samples=3, **changes)
        return [(row["id"], row["tests"], row["agreement"]) for row in rows], dropped, report

    monkeypatch.setattr(rstar_coder, "check_problem", counted)
    with pytest.raises(KeyboardInterrupt):
        results(tmp_path / "a")
    assert not (tmp_path / "a/data.parquet").exists()
    part = min((tmp_path / "a/data.parts/problems").glob("*.json"))
    part.write_text(part.read_text()[:40])  # cut off by a full disk
    until[0], again = 99, Told(texts)
    resumed = results(tmp_path / "a", writers=[again])
    assert checked[:2] == ["double", "triple"] and again._asked == ["silent"], "only missing texts are asked for"
    assert len(checked) == 2 + 3, "the part that was cut off, and those that had not been reached"
    assert resumed == results(tmp_path / "b")
    del checked[:]
    assert results(tmp_path / "a") == resumed and checked == ["silent"], "nothing that was finished runs again"
    texts["same"][2] = "def f(x): return x * 1"
    (tmp_path / "a/data.parts/texts").rename(tmp_path / "old")
    results(tmp_path / "a", inputs=FEW)
    assert checked[1:] == ["same", "silent"], "a problem with other candidates does"


def test_a_sandbox_that_fails_costs_a_problem_that_the_next_run_takes_up(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("assets.many_inputs.run", lambda *a, **k: (_ for _ in ()).throw(SandboxError("no process")))
        with pytest.raises(ConfigError, match="no solution is kept .1 of 1: the sandbox failed: no process"):
            step(tmp_path, PROBLEMS[:1])
    assert len(step(tmp_path, PROBLEMS[:1])[0]) == 1


@pytest.mark.parametrize(
    ("problems", "changes", "message"),
    [
        ([function("a", "1"), function("a", "2")], {}, "problems 0 and 1 both have the id 'a'"),
        ([{"id": "a", "prompt": "1"}], {}, "problem 'a' has neither `generator` nor `inputs`"),
        ([function("a", "1", rating="hard")], {}, "'hard' as its 'rating'; it must be a number"),
        ([function("a", "1", oracle=["x"])], {}, "its 'oracle'; it must be a text"),
        ([function("a", "1", inputs={"x": 1})], {}, "its 'inputs'; it must be a list"),
        ([function("a", "1", entry_point="a b")], {}, "'a b' as its 'entry_point'; it must be the name of a function"),
        (PROBLEMS[4:5], {}, r"no solution is kept \(1 of 1: agreement below the threshold\)"),
        (PROBLEMS[6:7], {}, "told wrote nothing for 1 prompts"),
        (PROBLEMS, {"writers": None}, "--writers and --sources are empty"),
        (PROBLEMS, {"question": "x"}, "--question is 'x'; it must contain <problem>"),
        (PROBLEMS, {"samples": 0}, "--samples is 0"),
        (PROBLEMS, {"writers": None, "sources": ["none.jsonl"]}, "none.jsonl' does not exist"),
    ],
)
def test_what_cannot_give_data_is_said(tmp_path, problems, changes, message):
    with pytest.raises(ConfigError, match=message):
        step(tmp_path, problems, **changes)
    assert not (tmp_path / "data.parquet").exists()


def test_settings_out_of_range_are_refused(tmp_path):
    for make, message in (
        (lambda: InputPlan(per_scale=0), "--inputs.per_scale is 0"),
        (lambda: Agreement(at_least=1.1), "--agreement.at_least is 1.1"),
        (lambda: Agreement(programs=0), "--agreement.programs is 0"),
        (lambda: RunLimits(total_s=0), "limits.total_s is 0"),
        (lambda: WordPrograms(seeds=2), "data.seeds is 2"),
        (lambda: WordPrograms(train_size=0), "data.train_size is 0"),
        (lambda: rstar_coder.main(Rows(), str(tmp_path / "data.jsonl"), []), "must end in .parquet"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def test_candidates_come_from_files_and_models(tmp_path, reasoner):
    rows = [{"prompt": "Double x.", "completion": text} for text in DOUBLE]
    rows += [{"prompt": "double x.", "completion": DOUBLE[0], "finish": "length"}]
    rows += [{"prompt": "Another.", "completion": DOUBLE[0]}]
    file = jsonl(tmp_path / "completions.jsonl", *rows)
    kept, _, report = step(tmp_path, PROBLEMS[:1], writers=None, sources=[file])
    assert kept[0]["agreement"] == 0.75 and report["candidates"] == {"agree": 3, "missing": 1}
    with pytest.raises(ConfigError, match="none of 5 completions in .* has the prompt of a problem"):
        step(tmp_path, PROBLEMS[1:2], writers=None, sources=[file])
    cut = tmp_path / "cut.jsonl"
    cut.write_text(Path(file).read_text()[:-20])
    with pytest.raises(ConfigError, match="line 5 of the file .*cut.jsonl is not valid JSON"):
        step(tmp_path, PROBLEMS[:1], writers=None, sources=[str(cut)])
    model = ModelWriter(PolicyParams(reasoner), SamplingParams(60))
    options = {"sources": [file], "agreement": Agreement(0.1), "samples": 16}
    _, _, report = step(tmp_path, PROBLEMS[:1], writers=[model], **options)
    assert report["candidates"]["agree"] == 3 and report["candidates"]["no function"] > 0
    assert sum(report["candidates"].values()) == 4 + 16


def test_generators_may_be_written(tmp_path):
    problem = {"id": "double", "prompt": "Double x.", "entry_point": "f"}
    wrong, right = "I cannot.", f"Here:\n```python\n{GENERATOR}```"
    writers = [Told({"double": [text]}) for text in (wrong, right)]
    rows, _, _ = step(tmp_path, [problem], generators=writers)
    assert len(rows[0]["tests"].splitlines()) == 9
    asked = rstar_coder._asked(problem, rstar_coder._generator_question(problem, rstar_coder.GENERATOR_QUESTION))
    assert "Double x." in asked["prompt"] and "a list of arguments of `f`" in asked["prompt"]
    chat = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    assert rstar_coder._asked(chat, "<problem>!")["prompt"][1]["content"] == "u!"


def test_texts_are_asked_for_again_if_the_writer_has_changed(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")
    before = described(ModelWriter(PolicyParams(str(model))))
    assert before == described(ModelWriter(PolicyParams(str(model))))
    assert before != described(ModelWriter(PolicyParams(str(model)), SamplingParams(9)))
    (model / "weights").write_text("22")
    assert before != described(ModelWriter(PolicyParams(str(model))))
    assert described(RuleWriter(solution)) != described(RuleWriter(lambda row, rng: ""))
    rows = [{"id": str(number), "prompt": prompt} for number, prompt in enumerate(draw_prompts(5, 0, False, 0.3))]
    texts = KeptTexts(tmp_path, 2, 0).of(RuleWriter(solution), rows, 3)
    assert texts == KeptTexts(tmp_path / "x", 2, 0).of(RuleWriter(solution), rows, 3)
    assert texts != KeptTexts(tmp_path / "y", 2, 1).of(RuleWriter(solution), rows, 3)


# ---- the miniature ---------------------------------------------------------------------------------------------------

MEANING = {
    "plus": lambda x, d: x + d, "minus": lambda x, d: x - d, "times": lambda x, d: x * d, "mod": lambda x, d: x % d,
    "half": lambda x, d: x // 2, "abs": lambda x, d: max(x, -x), "cap": lambda x, d: sorted([x, d])[0],
    "odd": lambda x, d: bool(x % 2), "over": lambda x, d: not x <= d, "divides": lambda x, d: x % d < 1,
}  # fmt: skip


def test_problems_solvers_and_tests_of_the_miniature():
    data = WordPrograms(train_size=150, val_size=60, seed=1)
    train, held_out = data.rows("train"), data.rows("val")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert 4 <= sum("oracle" in row for row in train) <= 30
    rng, right = random.Random(0), 0
    for row in itertools.chain(train, held_out):
        wanted = []
        for x in range(-20, 21):
            value = x
            for name, digit in steps_of(row["prompt"]):
                value = MEANING[name](value, digit)
            wanted.append(value)
        names: dict = {}
        exec(oracle(row["prompt"]), names)
        assert [names["f"](x) for x in range(-20, 21)] == wanted
        exec(solution(row, rng, 0.0).removeprefix("</think>"), names)
        assert [names["f"](x) for x in range(-20, 21)] == wanted
        try:
            exec(solution(row, rng).removeprefix("</think>"), names)
            right += [names["f"](x) for x in range(-20, 21)] == wanted
        except (RecursionError, ZeroDivisionError):
            pass
        if row in held_out:
            assert f"assert f(-3) == {wanted[17]!r}\n" in row["tests"]
    assert 0.65 < right / 210 < 0.82, "three in ten are wrong, and a few mistakes have no effect"


@pytest.mark.long
def test_the_chain(tmp_path, reasoner, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load((ROOT / "configs/rstar_coder/1_data.yaml").read_text())
    settings |= {"data": WordPrograms(train_size=8, seeds=0.5, seed=1), "writers": [RuleWriter(solution)]}
    settings |= {"benchmarks": None, "inputs": FEW, "agreement": Agreement(0.4), "samples": 5}
    rstar_coder.main(**settings)
    common = [
        *("--trainer.max_steps=1", "--trainer.logger=false", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--trainer.val_check_interval=1", "--model.sampling.max_new_tokens=4"),
    ]
    prompts = [{"class_path": "datamodules.WordPrograms", "init_args": {"val_size": 3}}]
    small = [f"--model.policy.model={reasoner}", "--data.batch_size=4", f"--data.prompts={json.dumps(prompts)}"]
    main(["fit", f"--config={ROOT}/configs/rstar_coder.yaml", *small, *common])
    assert Path("runs/rstar_coder/sft/config.json").exists()
    files = [f"--config={ROOT}/configs/{name}.yaml" for name in ("grpo", "rstar_coder/2_rl")]
    small = ["--data.val_size=2", "--model.batch.prompts_per_rollout=2", "--model.batch.group_size=2"]
    cli = main(["fit", *files, *small, *common])
    assert cli.trainer.callback_metrics["train/reward/code_tests"] == 0.0
