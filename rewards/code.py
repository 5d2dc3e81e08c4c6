"""Code that is run: shares of tests passed, in the sandbox for untrusted programs (docs/sandbox.md)."""

import ast
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.base import Failure, Reward
from rewards.failures import failure_rate
from rewards.sandbox import Limits, SandboxError, run
from rollouts import RolloutBatch
from support.errors import ConfigError

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
#: a mark before each verdict of the tests, so that what they print themselves is not taken for one
MARK = "@verdict"
HARNESS = """
import os as _os, sys as _sys
_tell = _os.fdopen(_os.dup(1), "w")
_sys.stdout = _sys.stderr
_seen, _looped = {}, set()
def _test(number, looped, condition):
    try:
        held = bool(condition())
    except Exception:
        held = False
    _seen[number] = _seen.get(number, True) and held
    if looped:
        _looped.add(number)
    else:
        print(MARK, number, int(held), file=_tell, flush=True)
def _called(name):
    return lambda *arguments, **keywords: call(name, *arguments, **keywords)
_names = {"__name__": "tests", "_test": _test}
try:
    exec(HELPERS, _names)
except Exception:
    pass
_names[ENTRY] = _called(ENTRY)
exec(TESTS, _names)
if "check" in _names:
    _names["check"](_names[ENTRY])
for number in _looped:
    print(MARK, number, int(_seen[number]), file=_tell, flush=True)
"""


def code_of(completion: str) -> str:
    """The last fenced block after the reasoning, closed or not; all of it if nothing is fenced. Leading blanks stay, they may be an indentation."""
    text = completion.rsplit("</think>", 1)[-1]
    blocks = _FENCE.findall(text)
    return blocks[-1][1] if blocks else text


def program_of(prompt: str, completion: str, entry_point: str) -> str:
    """A whole program from a completion that defines `entry_point`, or that goes on with a prompt which ends inside it.

    In the first case the prompt gives what stands before that function (imports, helpers). In the second the completion ends where its indentation does:
    models that do not stop write on.
    """
    code = code_of(completion)
    head = rf"^(?:async +def|def|class) +{re.escape(entry_point)}\b|^{re.escape(entry_point)} *="
    if re.search(head, code, re.MULTILINE):
        begun = re.search(head, prompt, re.MULTILINE)
        return (prompt[: begun.start()] if begun else "") + "\n" + code
    lines = code.lstrip("\n").split("\n")
    if lines[0] and not lines[0][0].isspace():
        lines[0] = "    " + lines[0]  # decoding took the first blanks away
    end = next(
        (i for i, line in enumerate(lines) if line.strip() and not line[0].isspace() and line[0] not in ")]}"),
        len(lines),
    )
    return prompt.rstrip(" \t") + ("" if prompt.endswith("\n") else "\n") + "\n".join(lines[:end]) + "\n"


class _Asserts(ast.NodeTransformer):
    """Every assert that depends on something becomes a numbered test that does not end the others."""

    def __init__(self) -> None:
        self.count, self.depth = 0, 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if not any(isinstance(part, (ast.Call, ast.Name)) for part in ast.walk(node.test)):
            return node  # `assert True` tests nothing
        condition = ast.Lambda(ast.arguments([], [], None, [], [], None, []), node.test)
        call = ast.Call(
            ast.Name("_test", ast.Load()), [ast.Constant(self.count), ast.Constant(self.depth > 0), condition], []
        )
        self.count += 1
        return ast.Expr(call)

    def _deeper(self, node: ast.AST) -> ast.AST:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    visit_For = visit_While = _deeper

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self.generic_visit(node) if node.name == "check" else self._deeper(node)


def caller_of(tests: str, prompt: str, entry_point: str) -> tuple[str, int]:
    """The program that tests a function in another process, and how many tests it has.

    Args:
        tests: asserts, in `check(candidate)` or by themselves. prompt: gives the helpers that they use.

    Raises:
        SyntaxError: the tests are no Python.
    """
    asserts = _Asserts()
    tree = ast.fix_missing_locations(asserts.visit(ast.parse(tests)))
    given = {"MARK": MARK, "HELPERS": prompt, "ENTRY": entry_point, "TESTS": ast.unparse(tree)}
    return "\n".join(f"{name} = {value!r}" for name, value in given.items()) + HARNESS, asserts.count


def passed(output: str) -> int:
    """Tests that held according to a caller's output."""
    return sum(line.startswith(f"{MARK} ") and line.endswith(" 1") for line in output.splitlines())


def same_output(found: str, wanted: str) -> bool:
    """Equal but for blanks at the ends of lines and blank lines at the end."""
    return [line.rstrip() for line in found.rstrip().split("\n")] == [
        line.rstrip() for line in wanted.rstrip().split("\n")
    ]


class CodeTests(Reward):
    """The share of tests that a completion's code passes, or 1 for all of them and 0 otherwise.

    A row has either `tests` (or `test`, as HumanEval calls it: asserts, a text or a list of them) with `entry_point`, the function they call, or `cases`, a list of
    {input, output} for a program that reads and prints. `code_prompt` (or `prompt`) is the beginning that a completion goes on with. Every assert counts, those in
    loops once. The tests run in a process of their own, where the code can neither read them nor report for them; it is asked for plain data.

    Args:
        graded: the share; otherwise all or nothing.
        workers: completions that run at once.
        limits: for each program. allow_weaker: see docs/sandbox.md.
        max_failure_rate: of the sandbox itself; a program that fails or hangs is wrong and no failure.
        weight, name: as in every reward.
    """

    is_correctness, waits, span = True, True, (0.0, 1.0, False)

    def __init__(
        self,
        graded: bool = True,
        workers: int = 2,
        limits: Limits | None = None,
        allow_weaker: bool = False,
        max_failure_rate: float = 0.05,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if workers < 1:
            raise ConfigError(f"CodeTests: workers is {workers}; it must be at least 1.")
        self.graded, self.workers, self.limits, self.allow_weaker = graded, workers, limits or Limits(), allow_weaker
        self.max_failure_rate = failure_rate(max_failure_rate, "CodeTests")

    def score(self, batch: RolloutBatch) -> list[float | Failure]:
        rows = [batch.rows[i] for i in batch.groups.tolist()]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._one, rows, batch.completions))

    def _one(self, row: dict[str, Any], completion: str) -> float | Failure:
        try:
            right, count = (
                self._cases(row["cases"], code_of(completion)) if row.get("cases") else self._tests(row, completion)
            )
        except SandboxError as error:
            return Failure("error", str(error))
        return right / count if self.graded else float(right == count)

    def _tests(self, row: dict[str, Any], completion: str) -> tuple[int, int]:
        prompt = row.get("code_prompt") or (row["prompt"] if isinstance(row["prompt"], str) else "")
        caller, count = caller_of(_tests_of(row), prompt, row["entry_point"])
        program = program_of(prompt, completion, row["entry_point"])
        return passed(run(program, limits=self.limits, caller=caller, allow_weaker=self.allow_weaker).stdout), count

    def _cases(self, cases: list[dict[str, str]], program: str) -> tuple[int, int]:
        right = 0
        for case in cases:
            done = run(program, str(case["input"]), self.limits, allow_weaker=self.allow_weaker)
            right += done.status == "ok" and same_output(done.stdout, str(case["output"]))
            if not right and not self.graded:
                break
        return right, len(cases)

    def check_columns(self, row: dict[str, Any]) -> None:
        where = f"the reward {self.name!r} (CodeTests), row {row.get('id')!r}"
        if row.get("cases"):
            if not all(isinstance(case, dict) and {"input", "output"} <= set(case) for case in row["cases"]):
                raise ConfigError(f"{where}: `cases` must be a list of {{input, output}}.")
            return
        if not _tests_of(row) or not row.get("entry_point"):
            raise ConfigError(
                f"{where}: needs the data columns `tests` and `entry_point`, or `cases`; it has {sorted(row)}. Name them in data.columns."
            )
        try:
            _, count = caller_of(_tests_of(row), "", row["entry_point"])
        except SyntaxError as error:
            raise ConfigError(f"{where}: the tests are no Python: {error}.") from error
        if count == 0:
            raise ConfigError(f"{where}: the tests hold no assert that calls anything.")


def _tests_of(row: dict[str, Any]) -> str:
    tests = row.get("tests") or row.get("test") or ""
    return tests if isinstance(tests, str) else "\n".join(tests)
