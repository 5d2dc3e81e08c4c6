"""Every page of docs/howto/ is followed to the letter, but for sizes: its files are written, its commands are run."""

import importlib
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from jsonargparse import auto_parser

from benchmarks import paired, sweep
from benchmarks.compare import __main__ as compare
from cli import inspect
from main import main

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "lm_eval": "tests/ecosystem/test_lm_eval.py",
    "mistakes": "tests/test_newcomer.py",
}  # pages that other tests follow
PAGES = sorted(page for page in (ROOT / "docs/howto").glob("*.md") if page.stem not in ELSEWHERE)
FILE = re.compile(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^    python (.+)$", re.MULTILINE)


def small(command, number, model):
    """Changes that make a command short: smaller sizes, and a model where the page does not name one."""
    changes = {
        "model.batch.prompts_per_rollout": 2,
        "model.batch.group_size": 2,
        "model.sampling.max_new_tokens": 6,
        "model.evaluation.sampling.max_new_tokens": 6,
        "trainer.max_steps": number + 1,
        "trainer.val_check_interval": 50,
        "trainer.limit_val_batches": 1,
        "trainer.limit_predict_batches": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
    }
    if "model.policy.model" not in command:
        changes["model.policy.model"] = model
    return [f"--{name}={value}" for name, value in changes.items()]


def newest(file):
    """The newest file of this name in the folders of the runs."""
    return max(Path("runs").glob(f"*/{file}"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_followed(page, reasoner, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = page.read_text()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if page.stem == "own_model":
        shutil.copytree(reasoner, "my_model")
    files, commands = dict(FILE.findall(text)), COMMAND.findall(text)
    for name, content in files.items():
        Path(name).write_text(content)
    assert len(commands) == text.count("    python ") >= 2
    try:
        for number, command in enumerate(commands):
            if "runs/RUN/" in command:  # the newest run with such a file
                (file,) = re.findall(r"runs/RUN/(\S+)", command)
                command = command.replace(f"runs/RUN/{file}", str(newest(file)))
            head, *given = shlex.split(command)
            if head == "main.py":
                assert all(Path(path).is_file() for path in re.findall(r"--config (\S+)", command))
                main([*given, *small(command, number, reasoner)])
            elif not given:
                runpy.run_path(head, run_name="__main__")
            elif given[0] == "cli.inspect":
                assert inspect.main(given[1:]).is_file()
            elif given[0] == "benchmarks.compare":  # the runs themselves: tests/benchmarks/test_compare.py
                asked = auto_parser(compare.main, as_positional=False).parse_args(given[1:])
                assert compare.arms(asked.methods, asked.vary, asked.objectives)
            elif given[0] == "benchmarks.sweep":  # its trials: tests/benchmarks/test_sweep.py
                asked = auto_parser(sweep.main, as_positional=False).parse_args(given[1:])
                assert (
                    all(Path(path).is_file() for path in asked.config) and len(sweep.read_space(Path(asked.space))) == 2
                )
            elif given[0] == "benchmarks.paired":  # with files: tests/benchmarks/test_paired.py
                assert auto_parser(paired.main).parse_args(given[1:]).out == "differences.csv"
            elif given[0] == "pytest":
                module = importlib.import_module(Path(given[1]).stem)
                [getattr(module, name)() for name in dir(module) if name.startswith("test_")]
            else:
                monkeypatch.setattr(sys, "argv", [head, *given])
                runpy.run_path(head, run_name="__main__")
    finally:
        for name in files:
            sys.modules.pop(Path(name).stem, None)
    out = capsys.readouterr().out
    checks = {
        "own_data": lambda: "2 prompts x 2 completions" in out and "drawn from 6" in out,
        "grading": lambda: "reward/math_answer" in newest("predictions.jsonl").read_text(),
        "own_reward": lambda: "reward/close" in newest("predictions.jsonl").read_text(),
        "own_model": lambda: "Settings that do nothing" in out,
        "lora": lambda: (
            "lora" not in " ".join(os.listdir("my_policy"))
            and Path("my_adapter/adapter_config.json").is_file()
            and "of them trained" in out
        ),
        "resume": lambda: (
            "Last checkpoint of lightning_modules.GRPO: runs/local/checkpoints/rollout_000001.ckpt" in out
        ),
        "compare": lambda: "Batch plan: 2 prompts x 2 completions" in out,
        "mlflow": lambda: out.count("Batch plan: 2 prompts x 2 completions") == 4,
        "own_project": lambda: "log-prob of 42: " in out and "{'train/reward': " in out,
        "own_paper": lambda: (
            len([line for line in out.splitlines() if re.fullmatch(r"\s*-?\d\.\d{3}\s+-?\d\.\d{3}", line)]) == 4
        ),
    }
    assert checks[page.stem](), out
