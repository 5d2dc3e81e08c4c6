"""DeepSeek-R1's chain of configurations: every stage runs from the folder that the one before it wrote."""

import json
import shutil
from pathlib import Path

import pytest

from assets.make_untrained import main as make_untrained
from assets.rejection_sample import main as rejection_sample
from datamodules import ArithmeticPrompts
from main import main
from policies import Policy, PolicyParams
from rewards import ExactAnswer
from rollouts import SamplingParams
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
COMMON = [
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
]
SFT = ["--trainer.limit_val_batches=0", "--model.lr_scheduler.total_steps=40"]
RL = [
    "--model.batch.prompts_per_rollout=2",
    "--model.batch.group_size=4",
    "--model.sampling.max_new_tokens=6",
    "--data.train_size=8",
    "--data.val_size=2",
    "--trainer.limit_val_batches=0",
]


def fit(*configs, extra):
    main(["fit", *(f"--config={ROOT}/configs/{name}.yaml" for name in configs), *COMMON, *extra])


def test_the_chain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_untrained("tiny_reasoner", "runs/r1/base", 32, 1)
    make_untrained("tiny_reasoner", "runs/r1/small_base", 16, 1)
    small = ["--data.train_size=64", "--data.val_size=8", "--data.batch_size=4"]
    fit("r1/1_cold_start", extra=[*SFT, *small])
    fit("grpo", "r1/2_reasoning_rl", extra=RL)
    assert Policy(PolicyParams("runs/r1/reasoning_rl")).model.config.hidden_size == 32
    # An untrained model is never right; the embedded one stands in for what the second stage would have made.
    shutil.rmtree("runs/r1/reasoning_rl")
    shutil.copytree(ROOT / "assets/tiny_reasoner", "runs/r1/reasoning_rl")
    data = ArithmeticPrompts(levels=[1], train_size=24, val_size=4, seed=1)
    rejection_sample(
        "runs/r1/reasoning_rl", data, [ExactAnswer()], "runs/r1/kept.jsonl", SamplingParams(40), per_prompt=2
    )
    kept = [json.loads(line) for line in Path("runs/r1/kept.jsonl").read_text().splitlines()]
    answers = {row["prompt"]: row["answer"] for row in data.rows("train")}
    assert len(kept) > 12 and all(row["response"].endswith(f"</think>{answers[row['prompt']]}") for row in kept)
    from_kept = ["--data.val_size=4", "--data.batch_size=4"]
    fit("r1/4_sft", extra=[*SFT, *from_kept])
    fit("grpo", "r1/5_rl", extra=RL)
    fit("r1/distill", extra=[*SFT, *from_kept])
    fit("r1/small_cold_start", extra=[*SFT, *small])
    fit("grpo", "r1/small_rl", extra=RL)
    sizes = {
        name: Policy(PolicyParams(f"runs/r1/{name}")).model.config.hidden_size
        for name in ("final", "distilled", "small_rl")
    }
    assert sizes == {"final": 32, "distilled": 16, "small_rl": 16}


def test_nothing_right_is_said_so(reasoner, tmp_path):
    data = ArithmeticPrompts(levels=[5], train_size=4, val_size=2, seed=1)
    with pytest.raises(ConfigError, match="no completion of .* earned 1.0 on 4 prompts"):
        rejection_sample(reasoner, data, [ExactAnswer()], str(tmp_path / "kept.jsonl"), SamplingParams(6))
    with pytest.raises(ConfigError, match="per_prompt is 0"):
        rejection_sample(reasoner, data, [ExactAnswer()], str(tmp_path / "kept.jsonl"), SamplingParams(6), per_prompt=0)
