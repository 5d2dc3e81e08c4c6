"""The files that a repository is expected to have agree with the project: versions, commands, supported Pythons."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def test_one_version_everywhere():
    version = PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading = re.search(r"^## (\S+) \((unreleased|\d{4}-\d{2}-\d{2})\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert str(citation["version"]) == version == heading[1] and citation["license"] == PROJECT["license"]
    assert ("date-released" in citation) == (heading[2] != "unreleased")


def test_the_workflow_runs_the_commands_of_the_ci_on_every_supported_python():
    jobs = WORKFLOW["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert commands["tests"][-1] == "bash .ci/run" and commands["distribution"] == ["make dist"]
    pythons = jobs["tests"]["strategy"]["matrix"]["python"]
    promised = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert pythons == promised and PROJECT["requires-python"] == f">={pythons[0]}"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in pythons
    for path in ("docs/releasing.md", "CONTRIBUTING.md"):
        assert all(version in (ROOT / path).read_text() for version in pythons), path


def test_commands_before_a_commit_are_those_of_lint():
    lint = re.search(r"^lint: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "hooks from elsewhere would have other versions than constraints.txt"
    for hook in repository["hooks"]:
        program, command, *_ = shlex.split(hook["entry"])
        if program == "make":
            assert command in TARGETS and hook["stages"] == ["pre-push"] and not hook["pass_filenames"]
        else:
            assert f"$(BIN)/{Path(program).name} {command} " in lint and hook["types"] == ["python"]


@pytest.mark.parametrize("form", [form for form in FORMS if form.name != "config.yml"], ids=lambda form: form.stem)
def test_an_issue_form_has_what_github_asks_for(form):
    """GitHub drops a form with a mistake without a word."""
    settings = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= settings.keys() <= {"name", "description", "body", "labels", "title"}
    inputs = [part for part in settings["body"] if part["type"] != "markdown"]
    assert inputs and all(part["type"] in ("textarea", "input", "dropdown", "checkboxes") for part in inputs)
    assert len({part["id"] for part in inputs}) == len(inputs)
    assert all(part["attributes"]["label"] for part in inputs)
    assert any(part.get("validations", {}).get("required") for part in inputs)


def instructions():
    """(word, arguments) of each instruction of the Dockerfile."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word.isupper()]


def test_the_image_has_the_packages_and_the_command_of_the_wheel():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.rstrip("*").partition(".")[0] for name in settings["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in settings["py-modules"]}
    assert "*" in ignored and sent == packages | modules | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in sent)
    words = dict(instructions())
    assert words["ENTRYPOINT"] == f'["{next(iter(PROJECT["scripts"]))}"]' and words["USER"] != "root"
    (base,) = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    assert base == "python:3.11-slim" and ">=3.11" == PROJECT["requires-python"]
    assert any("-c /opt/constraints.txt" in rest for word, rest in instructions() if word == "RUN")


def test_the_page_of_security_promises_what_pages_hold():
    """Its links have anchors, which `make docs` checks; here, that both pages of promises are among them."""
    page = (ROOT / "SECURITY.md").read_text()
    assert "docs/reliability.md#" in page and "docs/sandbox.md" in page and "How to report" in page
