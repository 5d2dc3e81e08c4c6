"""Every recipe's plan on its model's shape: the paper's batches, and memory for the machine that the recipe is for."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig, Qwen2Config

from assets.make_untrained import reasoner_tokenizer
from benchmarks.model_shapes import SHAPES
from main import main
from tests.helpers.hub import write_hub

ROOT = Path(__file__).resolve().parents[2]
SMALL, QWEN = SHAPES[0], SHAPES[3]
DISTILLED = replace(QWEN, name="R1-Distill-Qwen-1.5B", tied=False)
#: the model of a file's name: (its shape, the largest sum of `plan` in GiB)
MACHINES = {
    "r1_distill_1.5b": (DISTILLED, 0.9 * 80e9 / 2**30),  # a tenth of 80 GB is for the allocator
    "qwen2.5_1.5b": (QWEN, 0.9 * 80e9 / 2**30),
    "smollm2": (SMALL, 4.0),  # of a laptop, beside other programs
}
#: prompts, completions per prompt, updates per rollout, and optimiser steps of the papers' runs; the steps are the
#: recipe's where the paper does not state them
PAPER = {
    "grpo_r1_distill_1.5b": (16, 64, 1, None),
    "grpo_qwen2.5_1.5b": (16, 64, 1, None),
    "hc_rlhf_qwen2.5_1.5b": (64, 2, 1, None),
    "adapt_think_r1_distill_1.5b": (128, 16, 1, 40_315 // 128),
    "auto_think_r1_distill_1.5b": (128, 8, 2, 2 * 220 + 440 + 130),
    "prorl_r1_distill_1.5b": (256, 16, 4, 4 * 2000),
    "prorl_qwen2.5_1.5b": (256, 16, 4, 4 * 2000),
    "saturn_r1_distill_1.5b": (2, 8, 1, None),
}
RECIPES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "configs/recipes").glob("*.yaml"))}
CHEAP = ("grpo_qwen2.5_1.5b", "hc_rlhf_qwen2.5_1.5b")


def machine(name):
    return next(MACHINES[model] for model in MACHINES if name.endswith(model))


def stages(name):
    """The settings of each stage of a recipe as arguments; one empty list without stages."""
    callbacks = RECIPES[name]["trainer"]["callbacks"]
    schedules = [one["init_args"]["stages"] for one in callbacks if one["class_path"] == "callbacks.StageSchedule"]
    given = [stage["set"] for schedule in schedules for stage in schedule]
    return [[f"--model.{key}={value}" for key, value in settings.items()] for settings in given] or [[]]


def planned(name, folder, capsys, *changes):
    main(["plan", f"--config={ROOT}/configs/recipes/{name}.yaml", f"--model.policy.model={folder}", *changes])
    return capsys.readouterr().out


def number(pattern, text):
    return float(re.search(pattern, text)[1].replace(",", ""))


def test_the_distilled_model_has_the_published_number_of_weights():
    assert DISTILLED.weights == 1_777_088_000


@pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.long) for name in RECIPES]
)
def test_a_recipe_fits_its_machine_and_has_the_papers_batches(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    shape, limit = machine(name)
    write_hub(tmp_path, longest=100 if shape is SMALL else 1000)  # the official scripts cut prompts at 1,024 tokens
    config = Qwen2Config if shape.bias else LlamaConfig
    config(**shape.config, max_position_embeddings=32768).save_pretrained("model")
    reasoner_tokenizer().save_pretrained("model")
    largest = []
    for changes in stages(name):
        text = planned(name, "./model", capsys, *changes)
        assert f"{shape.weights:,} parameters" in text or "lora" in RECIPES[name]["model"]["init_args"]["policy"]
        largest.append(number(r"largest sum: ([\d.]+) GiB", text))
        assert "none found" in text.split("Settings that do nothing")[1]
        if name in PAPER:
            prompts, completions, updates, steps = PAPER[name]
            assert f"{prompts} prompts x {completions} completions = {prompts * completions} rows" in text
            assert f"{updates} update(s) of {prompts * completions // updates} rows" in text
            assert steps is None or f"{steps:,} optimiser steps" in text
            assert name.startswith("saturn") or number(r"prompts of at most ([\d,]+)", text) > 1000
    assert max(largest) <= limit
    comment = (ROOT / f"configs/recipes/{name}.yaml").read_text().replace("\n#", "")
    assert number(r"`plan`: ([\d.]+) GiB", comment) == pytest.approx(max(largest), rel=0.02)


def test_every_method_has_a_recipe_of_each_size():
    methods = {"grpo", "hc_rlhf", "adapt_think", "auto_think", "prorl"}
    of_gpus, of_laptops = (
        {name.split(f"_{m}")[0] for name in RECIPES for m in models if name.endswith(m)}
        for models in (("r1_distill_1.5b", "qwen2.5_1.5b"), ("smollm2",))
    )
    assert methods <= of_gpus and methods == of_laptops
    assert {name for name in RECIPES if not name.endswith("smollm2")} == PAPER.keys()
