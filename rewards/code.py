"""Rewards for code: the fraction of tests passed, in the sandbox for untrusted programs (docs/sandbox.md)."""

import ast
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.base import Failure, Reward
from rewards.failures import failure_rate
from rewards.sandbox import Limits, SandboxError, run
from rollouts import RolloutBatch
from support.errors import ConfigError

#: a mark before each verdict, so that the tests' own output is not taken for a verdict
MARK = "@verdict"
HARNESS = """
import builtins as _builtins, os as _os, sys as _sys
_tell = _os.fdopen(_os.dup(1), "w")
_sys.stdout = _sys.stderr
_seen, _late, _entered = {}, set(), set()
def _test(number, looped, held):
    _seen[number] = _seen.get(number, True) and held
    if looped:
        _late.add(number)
    else:
        print(MARK, number, int(held), file=_tell, flush=True)
def _called(name):
    def function(*arguments, **keywords):
        try:
            return call(name, *arguments, **keywords)
        except CallFailed as error:
            kind = getattr(_builtins, str(error).partition(":")[0], None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                raise kind(str(error).partition(": ")[2]) from None
            raise
    return function
_names = {"__name__": "tests", "_test": _test, "_enter": _entered.add}
try:
    exec(HELPERS, _names)
except Exception:
    pass
_names[ENTRY] = _called(ENTRY)
exec(TESTS, _names)
for _name in RUN:
    if _name not in _entered:
        _names[_name](*([_names[ENTRY]] if _name == "check" else []))
for _number in _late:
    print(MARK, _number, int(_seen[_number]), file=_tell, flush=True)
"""


def code_of(completion: str) -> str:
    """The last fenced block after the reasoning, closed or not; all of the text without a fence.

    Leading blanks are kept, because they may be an indentation.
    """
    text = completion.rsplit("</think>", 1)[-1]
    block: list[str] | None = None
    inside = False
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if not line.lstrip(" \t").startswith("```"):
            if inside and block is not None:
                block.append(line)
        elif inside:
            inside = False
        elif line.endswith("\n"):
            block, inside = [], True
    return text if block is None else "".join(block)


def program_of(prompt: str, completion: str, entry_point: str) -> str:
    """A whole program from a completion that defines `entry_point`, or that continues a prompt which ends inside it.

    In the first case the prompt provides the code before that function (imports, helpers). In the second, the code ends
    with its indentation, because models that do not stop write more text.
    """
    code = code_of(completion)
    head = rf"^(?:async +def|def|class) +{re.escape(entry_point)}\b|^{re.escape(entry_point)} *="
    if re.search(head, code, re.MULTILINE):
        begun = re.search(head, prompt, re.MULTILINE)
        return (prompt[: begun.start()] if begun else "") + "\n" + code
    lines = code.lstrip("\n").split("\n")
    if lines[0] and not lines[0][0].isspace():
        lines[0] = "    " + lines[0]  # decoding removed the first blanks
    end = next(
        (i for i, line in enumerate(lines) if line.strip() and not line[0].isspace() and line[0] not in ")]}"),
        len(lines),
    )
    return prompt.rstrip(" \t") + ("" if prompt.endswith("\n") else "\n") + "\n".join(lines[:end]) + "\n"


class _Tests(ast.NodeTransformer):
    """Turns every assert with a call or a name into a numbered test whose failure does not end the others.

    A `try` or an `if` that contains asserts or calls is one test, because it tests which branch is taken.
    """

    def __init__(self, entry_point: str, repeated: bool) -> None:
        self.entry_point, self.repeated = entry_point, repeated
        self.count, self.depth = 0, 0

    def _numbered(self, body: list[ast.stmt]) -> ast.stmt:
        """The statements, then a verdict: passed if none of them raises an exception."""

        def verdict(held: bool) -> ast.stmt:
            arguments = [ast.Constant(self.count), ast.Constant(self.depth > 0), ast.Constant(held)]
            return ast.Expr(ast.Call(ast.Name("_test", ast.Load()), list(arguments), []))

        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [verdict(False)])
        test = ast.Try(body, [handler], [verdict(True)], [])
        self.count += 1
        return test

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if not any(isinstance(part, (ast.Call, ast.Name)) for part in ast.walk(node.test)):
            return node  # `assert True` tests nothing
        return self._numbered([node])

    def _branches(self, node: ast.Try | ast.If) -> ast.AST:
        parts = list(ast.walk(node))
        defines = any(isinstance(part, (ast.FunctionDef, ast.ClassDef)) for part in parts)
        asserts = any(isinstance(part, (ast.Assert, ast.Raise)) for part in parts)
        calls = any(isinstance(part, ast.Name) and part.id in (self.entry_point, "candidate") for part in parts)
        if defines or not (asserts or (calls and isinstance(node, ast.Try))):
            return self.generic_visit(node)
        if any(isinstance(part, (ast.Return, ast.Break, ast.Continue, ast.Yield)) for part in parts):
            return self.generic_visit(node)  # a statement that controls the flow of the tests is not a test
        return self._numbered([node])

    visit_Try = visit_If = _branches

    def _deeper(self, node: ast.AST) -> ast.AST:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    visit_For = visit_While = visit_AsyncFor = visit_AsyncFunctionDef = visit_Lambda = _deeper

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        once = node.name in ("check", *_test_functions([node])) and not self.depth and not self.repeated
        visited = self.generic_visit(node) if once else self._deeper(node)
        entered = ast.Expr(ast.Call(ast.Name("_enter", ast.Load()), [ast.Constant(node.name)], []))
        node.body.insert(0, entered)
        return visited


def _test_functions(statements: list[ast.stmt]) -> list[str]:
    """Names of the functions without parameters whose name begins with test, as in test runners."""
    functions = [node for node in statements if isinstance(node, ast.FunctionDef)]
    return [
        node.name
        for node in functions
        if node.name.startswith("test") and not (node.args.args or node.args.posonlyargs or node.args.vararg)
    ]


def _called_again(tree: ast.Module) -> bool:
    """Whether the tests themselves call `check` or a test function in a loop or more than once."""
    names = ["check", *_test_functions(tree.body)]
    calls = [part.func.id for part in ast.walk(tree) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)]
    loops = [part for part in ast.walk(tree) if isinstance(part, (ast.For, ast.While, ast.comprehension))]
    inside = [part.id for loop in loops for part in ast.walk(loop) if isinstance(part, ast.Name)]
    return any(calls.count(name) > 1 or name in inside for name in names)


def caller_of(tests: str, prompt: str, entry_point: str) -> tuple[str, int]:
    """The program that tests a function in another process, and the number of its tests.

    Args:
        tests: asserts, in `check(candidate)`, in functions named test..., or at the top level.
        prompt: provides the helpers that the tests use.
        entry_point: name of the tested function.

    Raises:
        SyntaxError: the tests are not valid Python.
    """
    tree = ast.parse(tests)
    run = ["check"] if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body) else []
    run += _test_functions(tree.body)
    numbered = _Tests(entry_point, _called_again(tree))
    tree = ast.fix_missing_locations(numbered.visit(tree))
    names = {"MARK": MARK, "HELPERS": prompt, "ENTRY": entry_point, "RUN": run, "TESTS": ast.unparse(tree)}
    return "\n".join(f"{name} = {value!r}" for name, value in names.items()) + HARNESS, numbered.count


def passed(output: str) -> int:
    """Number of passed tests in a caller's output; a test that ran several times must pass each time."""
    verdicts: dict[str, bool] = {}
    for line in output.splitlines():
        mark, _, verdict = line.partition(" ")
        number, _, held = verdict.partition(" ")
        if mark == MARK and number.isdecimal() and held in ("0", "1"):
            verdicts[number] = verdicts.get(number, True) and held == "1"
    return sum(verdicts.values())


def same_output(output: str, wanted: str) -> bool:
    """Whether two outputs are equal, apart from blanks at the ends of lines and blank lines at the end."""
    return [line.rstrip() for line in output.rstrip().split("\n")] == [
        line.rstrip() for line in wanted.rstrip().split("\n")
    ]


class CodeTests(Reward):
    """The fraction of tests that a completion's code passes, or 1 for all of them and 0 otherwise.

    A row has either `tests` (or `test`, HumanEval's name: asserts, a text or a list of texts) with `entry_point`, the
    function that they call, or `cases`, a list of {input, output} for a program that reads and prints. `code_prompt`
    (or `prompt`) is the beginning of the code that a completion continues. Every assert counts, those in loops once; a
    `try` or `if` that contains asserts is one test; a test that runs several times must pass each time. The tests run
    in a separate process and exchange plain data with the code, which can neither read the tests nor report for them.

    Args:
        graded: True for the fraction, False for all or nothing.
        workers: number of completions that run in parallel.
        limits: limits of each program.
        allow_weaker: accept weaker protections, see docs/sandbox.md.
        max_failure_rate: maximum fraction of completions for which the sandbox itself fails; a program that fails or
            hangs is wrong, not a failure.
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
            raise ConfigError(f"CodeTests: workers is {workers}; set it to 1 or more.")
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
            cases = row["cases"] if isinstance(row["cases"], list) else [row["cases"]]
            if not all(isinstance(case, dict) and {"input", "output"} <= set(case) for case in cases):
                raise ConfigError(f"{where}: `cases` is not a list of {{input, output}}; correct the row.")
            return
        if not _tests_of(row) or not row.get("entry_point"):
            raise ConfigError(
                f"{where}: needs the data columns `tests` and `entry_point`, or `cases`, but has {sorted(row)}; map "
                "the columns in data.columns."
            )
        try:
            _, count = caller_of(_tests_of(row), "", row["entry_point"])
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # nested too deeply, or a null byte
            raise ConfigError(
                f"{where}: the tests are not valid Python: {type(error).__name__} {error}; correct or remove the row."
            ) from error
        if count == 0:
            raise ConfigError(f"{where}: the tests contain no assert that calls anything; correct or remove the row.")


def _tests_of(row: dict[str, Any]) -> str:
    tests = row.get("tests") or row.get("test") or ""
    return tests if isinstance(tests, str) else "\n".join(tests)
