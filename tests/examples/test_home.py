"""examples/home as a user has it: a wheel of this distribution in a fresh environment, without the source tree."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "lightning_modules datamodules rewards callbacks objectives policies rollouts cli tracking support".split()
SMALL = [
    "--data.train_size=8",
    "--data.val_size=4",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--trainer.logger=false",
]


def run(command, folder, **environment):
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PL_GLOBAL_SEED")}
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def pip(*arguments):
    return [sys.executable, "-m", "pip", *arguments]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what git knows, so that a file which was left out of both is missed here."""
    folder = tmp_path_factory.mktemp("wheel")
    names = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    run(
        pip(
            "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(folder / "source")
        ),
        folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def home(tmp_path_factory, wheel):
    """The example's folder with its own environment, which shares this one's dependencies, not the distribution."""
    folder = tmp_path_factory.mktemp("somewhere") / "home"
    shutil.copytree(ROOT / "examples/home", folder)
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], folder)
    python = str(folder / ".venv/bin/python")
    run(pip("--python", python, "install", "-q", "--no-deps", "--no-index", str(wheel)), folder)
    # A folder named in a .pth is searched, but its own .pth files, such as an editable install's, are not followed.
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], folder).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(pip("--python", python, "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-e", "."), folder)
    return folder


def test_the_wheel_holds_models_configurations_types_and_a_command(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = {
        str(path.relative_to(ROOT))
        for folder in ("configs", "assets")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    kept = {name for name in kept if "__pycache__" not in name}
    assert len(kept) > 100 and kept <= names, sorted(kept - names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert not [name for name in names if name.startswith(("tests", "docs", "examples"))]
    (entries,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "lightning-posttrain = main:run" in zipfile.ZipFile(wheel).read(entries).decode()


@pytest.mark.long
def test_two_methods_train_in_a_project_of_its_own(home):
    packages = ", ".join(PACKAGES)
    imports = f"import {packages}, main, train; print('FROM', *[m.__file__ for m in ({packages}, main)])"
    code = f"{imports}; train.main(rollouts=2, prompts=16)"
    out = run([str(home / ".venv/bin/python"), "-c", code], home, LIGHTNING_POSTTRAIN_CACHE=str(home / "cache"))
    (where,) = [line.split()[1:] for line in out.splitlines() if line.startswith("FROM ")]
    assert len(where) == 11 and all(path.startswith(str(home / ".venv/lib")) for path in where), where
    assert "GRPO: val/reward 0." in out and "AdaptThink: val/reward 0." in out
    for name in ("grpo", "adapt_think"):
        lines = [json.loads(line) for line in (home / f"{name}.jsonl").read_text().splitlines()]
        assert len(lines) == 2 and "=?" in lines[0]["example"]
    # What was trained is a folder that transformers alone can read.
    assert AutoModelForCausalLM.from_pretrained(home / "my_policy").num_parameters() > 500_000
    assert AutoTokenizer.from_pretrained(home / "my_policy")("1+1=?")["input_ids"]


@pytest.mark.long
def test_everything_in_one_process(home):
    """Its parts have cheap tests of their own in tests/lightning_modules/test_other_projects.py."""
    script = home / "one_process.py"
    assert len(script.read_text().splitlines()) <= 60
    out = run([str(home / ".venv/bin/python"), str(script)], home, LIGHTNING_POSTTRAIN_CACHE=str(home / "cache"))
    assert "scores: [1.0, 0.0]" in out and "first: " in out and "second: " in out
    for cell in ("first", "second"):
        (curves,) = home.glob(f"curves/{cell}/*/metrics.csv")
        assert "val/pass@1" in curves.read_text() and list(curves.parent.glob("checkpoints/*.ckpt"))
    runs = sqlite3.connect(home / "mlflow.db").execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'")
    assert runs.fetchone() == (2,)
    assert (home / "my_loop/model.safetensors").is_file()


@pytest.mark.long
def test_the_installed_command_trains(home):
    """The configuration and the model lie in the wheel; the rest is the project's."""
    run(
        [
            str(home / ".venv/bin/lightning-posttrain"),
            "fit",
            "--config",
            "configs/grpo.yaml",
            "--config",
            "sums.yaml",
            *SMALL,
        ],
        home,
    )
    assert len((home / "cli.jsonl").read_text().splitlines()) == 1
    assert "sums.rewards.close" in (home / "runs/local/config_fit.yaml").read_text()


@pytest.mark.long
def test_types_ship_with_the_wheel(home):
    """Without py.typed a checker would take everything from the distribution for Any."""
    imports = "from support.errors import ConfigError\nfrom cli.suggestions import explain\n"
    (home / "typed.py").write_text(f"{imports}reveal_type(ConfigError())\nexplain('', []) + 1\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        str(home / ".venv/bin/python"),
        "--follow-imports=silent",
        "typed.py",
    ]
    told = subprocess.run(command, cwd=home, capture_output=True, text=True).stdout
    assert (
        'Revealed type is "support.errors.ConfigError"' in told
        and 'Unsupported operand types for + ("str" and "int")' in told
    ), told


def test_the_example_is_no_part_of_the_distribution():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert not [name for name in settings["packages"]["find"]["include"] if name.startswith("examples")]
    assert tomllib.loads((ROOT / "examples/home/pyproject.toml").read_text())["project"]["dependencies"] == [
        "lightning-posttrain"
    ]


def test_every_command_of_its_page_is_run_by_a_test():
    """`predict` from a checkpoint alone runs in tests/cli/test_command_line.py; the rest here, with the wheel."""
    page = (ROOT / "examples/home/README.md").read_text()
    assert [line.split("  #")[0].strip() for line in page.splitlines() if line.startswith("    ")] == [
        "python3 -m venv .venv",
        ".venv/bin/pip install ../..",
        ".venv/bin/pip install -e .",
        ".venv/bin/python train.py",
        ".venv/bin/python one_process.py",
        ".venv/bin/lightning-posttrain fit --config configs/grpo.yaml --config sums.yaml",
        ".venv/bin/lightning-posttrain predict --ckpt_path last",
    ]
