"""The language and the layers of the tree: lines, phrases, docstrings and names in plain English, imports downwards."""

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: from top to bottom; a package may only import packages of lower layers, also for types and within functions
LAYERS = [
    {"benchmarks", "examples"},
    {"main"},
    {"cli"},
    {"assets", "callbacks"},
    {"lightning_modules"},
    {"environments"},
    {"rewards"},
    {"rollouts"},
    {"datamodules", "policies", "objectives", "tracking"},
    {"support"},
]
LAYER = {package: height for height, packages in enumerate(reversed(LAYERS)) for package in packages}

QUANTITIES = (
    "bits|bytes|calls|completions|draws|GB|gradients|kilobytes|log-probs|losses|MB|megabytes|milliseconds|ms|nats|numbers|"
    "one|ones|parameters|prompts|rewards|rollouts|rows|scores|seconds|steps|times|tokens|updates|values|once|twice"
)
UNITS = (
    "batch|character|completion|device|epoch|group|hour|key|layer|micro-batch|minute|pass|process|prompt|question|reward|rollout|row|"
    "sample|second|sequence|step|token|turn|update|user|weight|word"
)
WRONG_PHRASES = {
    r"\bis no good\b": "say what is wrong, e.g. 'is not valid YAML'",
    r"\b(?:is|are) none\b": "say what it is not, e.g. 'is not a command', or what is missing",
    r"\bSuch as:": "write 'Example:' or 'Did you mean ...?'",
    rf"\b(?:{QUANTITIES}|(?:[Oo]ne|[Aa]n?) \w+) an? (?:{UNITS})\b": "write 'per' instead of 'a'",
    r"\bcannot be noticed\b": "write 'cannot be detected'",
    r"\bis no prompt\b": "write 'is not a prompt'",
}
QUESTION = re.compile(r"(What|How|Where|Which|Who|Whose|When|Why)\b")
VAGUE_NAMES = {"found", "own", "given", "most"}
#: parameters whose names are keys of configurations, which stay as they are
PUBLIC_NAMES = {("lightning_modules/s_grpo.py", "most"), ("rewards/still3.py", "most")}


def tracked(suffix: str) -> list[Path]:
    """Files of the tree by suffix, without hidden folders, caches and the outputs of runs and builds."""
    skipped = {"build", "dist", "runs", "mlruns", "node_modules", "_build"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob(f"*{suffix}"))
    return sorted(
        path
        for path in files
        if not any(part.startswith(".") or part in skipped or part.endswith(".egg-info") for part in path.parts)
    )


def room(path: Path) -> str:
    """The folder that a file belongs to: one level, or two in tests/, e.g. tests/policies; "." for files at the top."""
    depth = 2 if path.parts[0] == "tests" else 1
    return "/".join(path.parts[:-1][:depth]) or "."


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what people read: comments and strings of Python, every line of other files."""
    if path.suffix != ".py":
        yield from enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), start=1)
        return
    with tokenize.open(ROOT / path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                yield token.start[0], " ".join(token.string.split())
    # Adjacent strings are one text: a phrase may be broken over two lines.
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, " ".join("".join(map(str, parts)).split())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


def long_lines(path: Path) -> list[str]:
    """Lines over 120 characters; in pages, tables and blocks of code may be longer, which readers copy as they are."""
    findings, fenced = [], False
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.lstrip().startswith("```")
        verbatim = path.suffix == ".md" and (fenced or line.startswith(("|", "    ")))
        if len(line) > 120 and not verbatim:
            findings.append(f"{path}:{number}: {len(line)} characters, 120 allowed")
    return findings


def wrong_phrases(path: Path) -> list[str]:
    findings = {}
    for line, text in texts(path):
        for pattern, advice in WRONG_PHRASES.items():
            match = re.search(pattern, text)
            if match:
                findings[line, match.group()] = f"{path}:{line}: {match.group()!r}: {advice}"
    return list(findings.values())


def question_docstrings(path: Path) -> list[str]:
    return [
        f"{path}:{line}: the docstring begins with {text.split()[0]!r}: begin with what the thing is or does"
        for line, text in docstrings(path)
        if QUESTION.match(text)
    ]


def vague_names(path: Path) -> list[str]:
    """Variables and parameters with names that do not say what the value is; tests may use them."""
    if path.parts[0] == "tests":
        return []
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add((node.lineno, node.id))
        if isinstance(node, ast.arg):
            names.add((node.lineno, node.arg))
    return [
        f"{path}:{line}: the name {name!r} does not say what the value is"
        for line, name in sorted(names)
        if name in VAGUE_NAMES and (path.as_posix(), name) not in PUBLIC_NAMES
    ]


CHECKS = (long_lines, wrong_phrases, question_docstrings, vague_names)
PYTHON = tracked(".py")
ROOMS = sorted({room(path) for path in PYTHON})


@pytest.mark.parametrize("name", ROOMS)
def test_python_files_are_written_in_plain_english(name):
    files = [path for path in PYTHON if room(path) == name and path != Path(__file__).relative_to(ROOT)]
    findings = [finding for path in files for check in CHECKS for finding in check(path)]
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("suffix", [".md", ".yaml", ".toml", "Makefile"])
def test_other_files_are_written_in_plain_english(suffix):
    findings = [finding for path in tracked(suffix) for check in CHECKS[:2] for finding in check(path)]
    assert not findings, "\n".join(findings)


#: files over 300 lines, and why each is one
LONG = {
    "benchmarks/vs_trl.py": "one experiment, read top to bottom",
    "datamodules/code_tasks.py": "one table of tasks",
    "lightning_modules/adapt_think.py": "one method in one file, with its facts",
    "lightning_modules/core/on_policy.py": "the training step and its hooks, read side by side",
    "rewards/math_compare.py": "one dispatch over the kinds of answers",
    "rewards/math_text.py": "one table of LaTeX forms",
    "rewards/sandbox/launcher.py": "runs alone in the sandbox, where nothing of the project can be imported",
}


def test_long_files_have_a_reason():
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in map(str, PYTHON)}
    long_files = {path for path, length in lengths.items() if length > 300 and not path.startswith("tests/")}
    assert long_files == set(LONG), "split the file, or give its reason in LONG"


# ---- imports --------------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PYTHON if path.parts[0] in LAYER or path.stem in LAYER}


@cache
def imports(module: str) -> dict[str, int]:
    """The project's modules that a module imports, anywhere in its code, with the line."""
    targets: dict[str, int] = {}
    for node in ast.walk(tree(MODULES[module])):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in submodules]
        targets |= {name: node.lineno for name in names if name in MODULES}
    return targets


def test_every_package_has_a_layer():
    packages = {path.parts[0] for path in PYTHON if path.name == "__init__.py"} - {"tests", "docs"}
    assert packages <= set(LAYER), f"give {', '.join(sorted(packages - set(LAYER)))} a layer in LAYERS"


def test_imports_go_to_lower_layers_only():
    upward = []
    for module, path in MODULES.items():
        package = module.partition(".")[0]
        for target, line in imports(module).items():
            other = target.partition(".")[0]
            if other != package and LAYER[other] >= LAYER[package]:
                upward.append(f"{path}:{line}: {package} imports {target}")
    assert not upward, "\n".join(upward)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """One circle per group of modules that import each other, by depth-first search."""
    state: dict[str, str] = {}
    trail: list[str] = []
    results = []

    def visit(node: str) -> None:
        state[node] = "open"
        trail.append(node)
        for target in sorted(graph.get(node, ())):
            if state.get(target) == "open":
                results.append(" -> ".join([*trail[trail.index(target) :], target]))
            elif target not in state:
                visit(target)
        trail.pop()
        state[node] = "done"

    for node in sorted(graph):
        if node not in state:
            visit(node)
    return results


def test_no_modules_import_each_other():
    results = circles({module: set(imports(module)) & set(MODULES) for module in MODULES})
    assert not results, "\n".join(results)


# ---- the checks themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Policy losses a token.",
        "tokens a second",
        "at most two seconds a step",
        "1.5 nats a token",
        "one a completion",
        "One dict a completion, in order",
        "a span a completion",
        "read once a group",
        "'trian' is none. Such as: x",
        "None if there is none.",
        "a folder that is none",
        "x.yaml is no good YAML",
    ],
)
def test_wrong_phrases_are_detected(text):
    assert any(re.search(pattern, text) for pattern in WRONG_PHRASES)


@pytest.mark.parametrize(
    "text",
    [
        "tokens per second",
        "a token",
        "gives a row to a group",
        "a token of a row",
        "one token per step",
        "none",
        "for example a step",
    ],
)
def test_plain_phrases_pass(text):
    assert not any(re.search(pattern, text) for pattern in WRONG_PHRASES)


def test_a_phrase_over_two_strings_and_every_kind_of_finding_are_detected(tmp_path, monkeypatch):
    source = (
        '"""What this is."""\n\n\n'
        "def f(given):\n"
        '    """Where it goes."""\n'
        '    raise ValueError(f"{given} nats "\n'
        '                     f"a token")  # one a prompt\n'
        f"# {'x' * 120}\n"
    )
    (tmp_path / "sample.py").write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    tree.cache_clear()
    path = Path("sample.py")
    assert len(wrong_phrases(path)) == 2 and len(question_docstrings(path)) == 2
    assert len(vague_names(path)) == 1 and len(long_lines(path)) == 1
    tree.cache_clear()


def test_only_prose_of_a_page_has_to_fit(tmp_path, monkeypatch):
    long = "x" * 121
    (tmp_path / "page.md").write_text(f"{long}\n| {long} |\n    {long}\n```sh\n{long}\n```\n{long}\n")
    (tmp_path / "a.yaml").write_text(f"    {long}\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [finding.split(":")[1] for finding in long_lines(Path("page.md"))] == ["1", "7"]
    assert len(long_lines(Path("a.yaml"))) == 1


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a -> b -> c -> a"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
