"""Every command and snippet of the pages: commands are parsed, configurations are composed, Python is run.

docs/howto/ is followed to the letter by test_howto.py. What is neither there nor recognised here is an error: a page
cannot have a command that no test knows.
"""

import ast
import contextlib
import io
import json
import re
import shlex
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from runpy import run_path

import pytest
import yaml
from jsonargparse import ArgumentParser
from markdown_it import MarkdownIt

from callbacks.one_shot import read_history
from cli.own_configurations import remember_as_own
from main import main
from rewards import Reward

ROOT = Path(__file__).resolve().parents[2]
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "make", "pip", "for", "torchrun", "srun", "mlflow", "lightning-posttrain")
FIRST = re.compile(r"^(?:[A-Z]+=\S+ )?(?:\.venv/bin/)?")
TESTS = 'python -m pytest -n 2 -m "not long"'
#: run elsewhere: the command, the test that runs it, and by what
ELSEWHERE = {
    "python3 -m venv .venv": ("tests/examples/test_home.py", '"-m", "venv"'),
    "torchrun --nproc_per_node 2 main.py fit --config configs/grpo.yaml --config configs/scale/two_cpus.yaml": (
        "tests/scale/test_torchrun.py",
        "torch.distributed.run",
    ),
    "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE": (
        "tests/scale/test_torchrun.py",
        "dcp_to_torch_save(",
    ),
}


def parsed(page):
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def commands(page):
    """Commands in indented blocks and in the text, with loops unrolled, and comments and prefixes removed."""
    tokens = parsed(page)
    lines = [line for token in tokens if token.type == "code_block" for line in token.content.splitlines()]
    inner = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    lines += [text for text in inner if text.partition(" ")[0] in PROGRAMS and " " in text and "):" not in text]
    for line in lines:
        line = FIRST.sub("", re.split(r"\s+# ", line)[0].strip())
        loop = re.fullmatch(r"for (\w) in ([\w ]+); do (.+); done", line)
        yield from [loop[3].replace(f"${loop[1]}", value) for value in loop[2].split()] if loop else [line]


def fences(page):
    """(language, text, the paragraph before it) of the fenced blocks."""
    tokens = parsed(page)
    told = [""] + [token.content for token in tokens]
    return [
        (token.info, token.content, " ".join(told[max(0, i - 3) : i + 1]))
        for i, token in enumerate(tokens)
        if token.type == "fence"
    ]


COMMANDS = sorted({command for page in PAGES for command in commands(page)})
FENCES = [(page, language, text, before) for page in PAGES for language, text, before in fences(page)]
MAIN = [c for c in COMMANDS if re.match(r"(srun )?(python main\.py|lightning-posttrain) ", c)]
SCRIPTS = [c for c in COMMANDS if re.match(r"python (assets|benchmarks|examples)/", c)]
MAKE = [c for c in COMMANDS if c.startswith("make ")]
SETTINGS = [c for c in COMMANDS if c.startswith(("#", "export OMP_NUM_THREADS="))]
PIP = [c for c in COMMANDS if c.startswith("pip install ")]
DOCKER = [c for c in COMMANDS if c.startswith("docker ")]
INSPECT = [c for c in COMMANDS if c.startswith("python -m cli.inspect ")]


def test_every_command_is_known():
    known = {*MAIN, *SCRIPTS, *MAKE, *SETTINGS, *PIP, *INSPECT, *DOCKER, *ELSEWHERE, TESTS}
    assert not (unknown := [command for command in COMMANDS if command not in known]), unknown
    assert len(MAIN) > 30 and len(SCRIPTS) > 10 and len(MAKE) > 5 and len(INSPECT) > 0
    for command, (test, how) in ELSEWHERE.items():
        assert command in COMMANDS and how in (ROOT / test).read_text()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the commands take for granted: a run with a checkpoint, and a file of one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/local/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/local/checkpoints/rollout_000080.ckpt").touch()
    (tmp_path / "runs/local/config_fit.yaml").symlink_to(ROOT / "configs/grpo.yaml")
    remember_as_own((ROOT / "configs/grpo.yaml").read_text())  # as the run would have done
    for name in ("configs", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my_overlay.yaml").write_text("trainer: {max_steps: 3}\n")
    return tmp_path


@pytest.mark.parametrize("command", MAIN)
def test_a_command_of_the_command_line_is_understood(command, here):
    given = shlex.split(
        command.replace("<run>", "local")
        .replace("--ckpt_path ...", "--ckpt_path last")
        .replace(" ...", " configs/grpo.yaml")
    )
    given = [
        "0" if argument == "N" else argument
        for argument in given[given.index("main.py" if "main.py" in given else given[0]) + 1 :]
    ]
    for option, value in pairwise(given):
        assert option != "--config" or Path(value).is_file(), f"{command} names {value}"
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(out):
        main(given if "--print_config" in given else [*given, "--print_config"])
    assert ended.value.code == 0
    printed = out.getvalue()
    config = yaml.safe_load(
        printed[printed.index("# lightning.pytorch") :] if "# lightning.pytorch" in printed else printed
    )
    assert {"model", "data", "trainer"} <= config.keys()
    for option, value in pairwise(given):
        if option.startswith("--model.") and config["model"]:
            found = config["model"]["init_args"]
            for key in option.removeprefix("--model.").split("."):
                found = found[key] if key in found else found["init_args"][key]
            if isinstance(found, dict) and "class_path" in found:
                found = found["class_path"]
            assert str(found) == value or float(found) == float(value)


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_script_has_the_options_that_it_is_given(command):
    _, name, *given = shlex.split(command)
    tree = ast.parse((ROOT / name).read_text())
    functions = {node.name: node.args.args for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    entries = [
        c.args[0].id
        for c in calls
        if getattr(c.func, "id", "") in ("auto_cli", "CLI", "run_script") and isinstance(c.args[0], ast.Name)
    ]
    known = {argument.arg for entry in entries for argument in functions.get(entry, [])}
    added = [call.args[0] for call in calls if getattr(call.func, "attr", "") == "add_argument" and call.args]
    known |= {name.value.lstrip("-") for name in added if isinstance(name, ast.Constant)}
    if any(isinstance(name, ast.JoinedStr) for name in added):  # an option for every field of a dataclass
        known |= {node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    options = {option.removeprefix("--").partition("=")[0] for option in given if option.startswith("--")}
    assert options <= known | {"config"}, f"{name} knows {sorted(known)}"
    for option, value in pairwise(given):
        assert option != "--config" or (ROOT / value).is_file()


@pytest.mark.parametrize("command", MAKE)
def test_a_target_of_make_exists(command):
    targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(command.split()[1:]) <= set(targets)


@pytest.mark.parametrize("command", PIP)
def test_what_is_installed_exists(command):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for argument in shlex.split(command)[2:]:
        assert argument in ("-e", "-c") or argument.startswith(".[") or (ROOT / argument).exists(), argument
        assert set(re.findall(r"[\w-]+", argument.partition("[")[2])) <= extras.keys()


@pytest.mark.parametrize("command", DOCKER)
def test_a_command_of_the_image_stands_in_the_dockerfile(command):
    assert f"#     {command}\n" in (ROOT / "Dockerfile").read_text()


def test_the_tests_by_hand_are_those_of_make():
    (by_hand,) = [line for line in (ROOT / "README.md").read_text().splitlines() if "pytest -n 2" in line]
    (made,) = re.findall(r"^test: .*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(shlex.split(by_hand.replace(".venv/bin/", ""))) <= set(shlex.split(made.replace("$(BIN)/", "")))


def named(language):
    return [pytest.param(*fence, id=f"{fence[0].stem}-{i}") for i, fence in enumerate(FENCES) if fence[1] == language]


def test_every_snippet_is_known():
    assert {language for _, language, _, _ in FENCES} <= {"python", "yaml", "json"}


@pytest.mark.parametrize("page, language, text, before", named("python"))
def test_a_snippet_of_python_runs_or_stands_in_the_file_before_it(page, language, text, before):
    if text.startswith("def "):
        files = re.findall(r"`([\w/]+\.py)`", before)
        source = "\n".join((ROOT / file).read_text() for file in files)
        assert files and all(line.strip() in source for line in text.splitlines()), f"{page.name}: not in {files}"
        return
    *body, last = text.strip().splitlines()
    names: dict = {}
    expression, _, promised = last.partition("  #")
    exec("\n".join(body if promised else [*body, last]), names)
    if promised:  # an expression with what it is; the last value is a measured time
        assert eval(expression, names)[:-1] == ast.literal_eval(f"({promised})")[:-1]


class Style(Reward):
    """Stands for the reward of one's own in a snippet."""

    def score(self, batch):
        return [0.0] * len(batch.completions)


@pytest.mark.parametrize("page, language, text, before", named("yaml"))
def test_a_configuration_is_put_together(page, language, text, before, here, monkeypatch, capsys):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("JUDGE_TOKEN", "x")
    monkeypatch.setitem(sys.modules, "my_rewards", sys.modules[__name__])
    tools = spec_from_file_location("my_tools", ROOT / "docs/examples/own_environment.py")
    monkeypatch.setitem(sys.modules, "my_tools", module_from_spec(tools))
    tools.loader.exec_module(sys.modules["my_tools"])
    snippet = yaml.safe_load(text)
    if "out" in snippet:  # the settings of a data step, whose script the page names
        script = re.search(r"python (assets/\w+\.py) --config", page.read_text())[1]
        step = ArgumentParser(exit_on_error=False)
        step.add_function_arguments(run_path(str(ROOT / script))["main"], as_positional=False)
        assert step.parse_object(snippet).out == snippet["out"]
        return
    if not snippet.keys() <= {"model", "data", "trainer"}:
        snippet = {"model": {"init_args": snippet}}
    Path("snippet.yaml").write_text(yaml.safe_dump(snippet))
    base = next(
        (re.search(r"configs/[\w/]+\.yaml", c)[0] for c in commands(page) if "main.py fit --config" in c),
        "configs/grpo.yaml",
    )
    cli = main(["plan", "--config", base, "--config", "snippet.yaml"])
    assert "Settings that do nothing" in capsys.readouterr().out
    for reward in snippet.get("model", {}).get("init_args", {}).get("rewards", []):
        assert reward["class_path"].rpartition(".")[2] in [type(own).__name__ for own in cli.model.rewards]


@pytest.mark.parametrize("page, language, text, before", named("json"))
def test_a_line_of_a_history_is_read(page, language, text, before, tmp_path):
    (tmp_path / "pass_rates.jsonl").write_text(text)
    (row,) = map(json.loads, text.splitlines())
    assert list(read_history(tmp_path / "pass_rates.jsonl", 1)) == [row["id"]]
