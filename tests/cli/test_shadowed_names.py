"""A folder or a file of the user with the name of one of our packages: one paragraph that says so, and what to do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_posttrain import SIBLINGS
from main import main
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def run(folder, code):
    """A script in a folder, with this project on the path behind it. Returns the process."""
    (folder / "train.py").write_text(code)
    return subprocess.run(
        [sys.executable, str(folder / "train.py")],
        cwd=folder.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )


def package(folder, name):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("def mine(): ...\n")
    return folder / name


@pytest.mark.parametrize("name", ["rewards", "callbacks", "support"])
@pytest.mark.parametrize("kind", ["a package", "a file"])
@pytest.mark.parametrize("first", ["", "import {name}\n"], ids=["not imported", "imported before"])
def test_another_package_or_file_of_the_name(tmp_path, name, kind, first):
    location = package(tmp_path, name) if kind == "a package" else tmp_path / f"{name}.py"
    if kind == "a file":
        location.write_text("def mine(): ...\n")
    importer = "from benchmarks import papers" if name == "callbacks" else "from lightning_modules import GRPO"
    ended = run(tmp_path, first.format(name=name) + importer)
    message = ended.stderr.splitlines()[-1]
    assert message.startswith("ImportError: ") and "cannot import name" not in message
    assert f"needs the package {ROOT / name}, but Python finds {location} first under the name {name!r}" in message
    assert message.endswith(
        f"put the project first at the top of your script: import sys; sys.path.insert(0, {str(ROOT)!r})"
    )
    assert f"Rename {location}, or" in message


def test_the_second_way_out(tmp_path):
    package(tmp_path, "rewards")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom lightning_posttrain import check_siblings\n"
    ended = run(tmp_path, code + "for name in ('lightning_modules', 'rewards', 'cli'): check_siblings(name)\n")
    assert ended.returncode == 0, ended.stderr


def test_a_folder_without_init_hides_nothing(tmp_path):
    """Python prefers a package further back to a folder without an __init__.py."""
    for name in SIBLINGS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").touch()
    code = "from lightning_posttrain import SIBLINGS, check_siblings\nfor name in SIBLINGS: check_siblings(name)\n"
    ended = run(tmp_path, code + "import assets; print(assets.__file__)")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(ROOT / "assets/__init__.py")


def test_a_name_that_nobody_needs_may_be_used(tmp_path):
    package(tmp_path, "callbacks")
    ended = run(tmp_path, "from lightning_posttrain import check_siblings\ncheck_siblings('lightning_modules')\n")
    assert ended.returncode == 0, ended.stderr


def test_every_package_checks_those_that_it_imports():
    direct = {}
    for name in SIBLINGS:
        trees = [ast.parse(path.read_text()) for path in (ROOT / name).rglob("*.py")]
        modules = [node.module or "" for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [
            a.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
        ]
        direct[name] = {module.partition(".")[0] for module in modules} & set(SIBLINGS) - {name}
        if "main" in {module.partition(".")[0] for module in modules}:
            direct[name].add("cli")
        head = (ROOT / name / "__init__.py").read_text()
        assert "check_siblings(__name__)" in head or not SIBLINGS[name]
    for name in SIBLINGS:
        needed = set(direct[name])
        while more := {other for one in needed for other in direct[one]} - needed:
            needed |= more
        assert set(SIBLINGS[name]) == needed - {name}, name


def test_a_class_of_the_users_own_folder(tmp_path, monkeypatch):
    """On the command line our packages come first, so the class is not found; the reason is the folder's name."""
    monkeypatch.chdir(tmp_path)
    folder = package(tmp_path, "rewards")
    arguments = ["--config=configs/grpo.yaml", "--trainer.logger=false", "--model.rewards=[rewards.Mine]"]
    with pytest.raises(ConfigError, match=f"rewards has no Mine. Your own {folder} has the name of a package of this"):
        main(["fit", *arguments])
