"""REDI's chain in small: recorded rollouts, two verifiers, pairs, SFT, and the second stage."""

import json
from pathlib import Path

import pytest
import yaml

from assets.trace_pairs import main as trace_pairs
from datamodules import ArithmeticPrompts
from main import main
from policies import Policy, PolicyParams
from rewards import ExactAnswer, NumericAnswer
from support.errors import ConfigError
from tests.ecosystem.test_trl_formats import jsonl

ROOT = Path(__file__).resolve().parents[1]
MODEL = str(ROOT / "assets/tiny_reasoner")


def trace(prompt, completion, answer, **more):
    return {"prompt": prompt, "completion": completion, "answer": answer, **more}


def written(folder):
    names = ("positives", "pairs")
    return [[json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in names]


def test_a_right_trace_is_one_on_which_all_agree(tmp_path, capsys):
    file = jsonl(
        tmp_path / "traces.jsonl",
        trace("1+1=?", "a</think>02", "2"),  # right as a number only
        trace("1+1=?", "b</think>2", "2", finish="eos"),
        trace("1+1=?", "c</think>2", "2"),
        trace("1+1=?", "c</think>2", "2"),
        trace("1+1=?", "d</think>3", "2"),
        trace("2+2=?", "e</think>4", "4", finish="length"),  # right, but cut off
        trace("2+2=?", "f</think>4", "4"),
        trace("3+3=?", "g</think>6", "6"),  # no wrong one
        trace("4+4=?", "h</think>1", "8"),  # no right one
        trace("5+5=?", "i" * 99 + "</think>1", "10"),
    )
    trace_pairs([file], [ExactAnswer(), NumericAnswer()], MODEL, str(tmp_path), max_trace=60)
    positives, pairs = written(tmp_path)
    assert [row["response"] for row in positives] == ["b</think>2", "c</think>2", "f</think>4", "g</think>6"]
    assert [(row["response_0"], row["response_1"], row["ended_1"]) for row in pairs] == [
        ("b</think>2", "a</think>02", True),
        ("f</think>4", "e</think>4", False),
    ]
    said = capsys.readouterr().out
    assert "10 traces of 4 problems: 1 too long, 5 right, 1 on which the verifiers differ" in said


def test_predictions_get_their_columns_from_the_data_by_id(tmp_path):
    data = ArithmeticPrompts(levels=[1], train_size=4, val_size=2, seed=1)
    rows = [*data.rows("train")[:1], *data.rows("val")[:1]]
    records = [
        {"id": row["id"], "prompt": row["prompt"], "completion": f"</think>{answer}", "finish": "eos"}
        for row in rows
        for answer in (row["answer"], "77")
    ]
    file = jsonl(tmp_path / "predictions.jsonl", *records)
    trace_pairs([file], [ExactAnswer()], MODEL, str(tmp_path), data=data)
    assert [row["prompt"] for row in written(tmp_path)[1]] == [row["prompt"] for row in rows]


def test_what_gives_no_pairs_is_said_so(tmp_path):
    file = jsonl(tmp_path / "right.jsonl", trace("1+1=?", "</think>2", "2"))
    with pytest.raises(ConfigError, match=r"none of 1 problems has both .* \(1 of 1 are right\)"):
        trace_pairs([file], [ExactAnswer()], MODEL, str(tmp_path))
    with pytest.raises(ConfigError, match="verifiers is empty"):
        trace_pairs([file], [], MODEL, str(tmp_path))
    with pytest.raises(ConfigError, match="row 0 of .* has no prompt and completion"):
        trace_pairs([jsonl(tmp_path / "x.jsonl", {"text": "a"})], [ExactAnswer()], MODEL, str(tmp_path))
    with pytest.raises(ConfigError, match="does not exist"):
        trace_pairs([str(tmp_path / "none" / "*.parquet")], [ExactAnswer()], MODEL, str(tmp_path))


def ends_with_even(completions):
    return [float(text.strip()[-1:] in set("02468")) for text in completions]


def test_the_chain(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [
        *("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"),
        "--trainer.enable_progress_bar=false",
    ]

    def fit(*configs, extra):
        main(["fit", *(f"--config={ROOT}/configs/{name}.yaml" for name in configs), *common, *extra])

    fit("grpo", "redi/1_traces", extra=["--data.levels=[3]", "--data.train_size=32", "--trainer.max_steps=1"])
    settings = yaml.safe_load((ROOT / "configs/redi/2_pairs.yaml").read_text())
    trace_pairs(settings["sources"], [ExactAnswer(), NumericAnswer()], MODEL, settings["out"])
    positives, pairs = written(Path("runs/redi"))
    assert len(positives) > len(pairs) > 0
    fewer = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0"]
    fit("redi/3_sft", extra=[*fewer, "--data.batch_size=4", "--data.val_size=2"])
    fit("redi", extra=[*fewer, "--data.batch_size=2", "--data.val_share=0"])
    changed = {
        name: dict(Policy(PolicyParams(f"runs/redi/{name}")).model.named_parameters()) for name in ("sft", "redi")
    }
    assert any((weight != changed["sft"][name]).any() for name, weight in changed["redi"].items())
