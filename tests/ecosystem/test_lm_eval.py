"""Exports are evaluated by lm-eval, offline, on a task of a local file."""

import json
import random
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from main import main
from policies import Policy, PolicyParams
from rewards import ExactAnswer
from rollouts import EmbeddedEngine, SamplingParams

pytest.importorskip("lm_eval")
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/howto/lm_eval.md").read_text()
SHORT = (
    "--model.batch.prompts_per_rollout=2 --model.batch.group_size=2 --model.sampling.max_new_tokens=6 "
    "--trainer.max_steps=1 --trainer.limit_val_batches=0 --trainer.logger=false --trainer.accelerator=cpu"
)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """The files of the page, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "data"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    for name, content in re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        Path(name).write_text(content)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


def test_the_page_can_be_followed(task, reasoner, monkeypatch, capsys):
    fit, evaluate = re.findall(r"^    python (.+)$", PAGE, re.MULTILINE)
    main([*shlex.split(fit)[1:], f"--model.policy.model={reasoner}", *SHORT.split()])
    _, module, *given = shlex.split(evaluate)
    monkeypatch.setattr(sys, "argv", [module, *given])
    runpy.run_module(module, run_name="__main__")
    table = capsys.readouterr().out
    assert re.search(r"\|sums\s*\|.*\|exact_match\|.*\|\s*0(\.\d+)?\|", table), table


def test_it_finds_what_the_own_engine_does(task):
    """Greedy answers of the embedded reasoner: the share of right ones is the same by either program."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    draw = random.Random(5)
    pairs = [(draw.randint(1, 10**n - 1), draw.randint(1, 10**n - 1)) for n in (1, 2, 3, 4, 5) * 5]
    rows = [{"id": str(i), "prompt": f"{a}+{b}=?", "answer": str(a + b)} for i, (a, b) in enumerate(pairs)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = Policy(PolicyParams(str(ROOT / "assets/tiny_reasoner")))
    policy.save("export")
    prompts = [policy.encode(row["prompt"]) for row in rows]
    batch = EmbeddedEngine().generate(policy, prompts, rows, 1, SamplingParams(max_new_tokens=72, temperature=0.0))
    right = ExactAnswer()(batch)
    found = simple_evaluate(
        model="hf",
        model_args={
            "pretrained": "export",
            "dtype": "float32",
            "think_end_token": policy.tokenizer.convert_tokens_to_ids("</think>"),
        },
        tasks=["sums"],
        task_manager=TaskManager(include_path="."),
        apply_chat_template=True,
        device="cpu",
        batch_size=16,
    )
    assert f"think_end_token={policy.tokenizer.convert_tokens_to_ids('</think>')} " in PAGE.replace(",", " ").replace(
        "`", " "
    )
    assert found["results"]["sums"]["exact_match,none"] == pytest.approx(float(right.mean()), abs=1e-6)
    assert 0.5 < float(right.mean()) < 1
    by_row = {sample["doc"]["id"]: sample["exact_match"] for sample in found["samples"]["sums"]}
    assert [by_row[row["id"]] for row in rows] == right.tolist()
