"""Norms of gradients by layer against the norm of all, and uncommitted changes kept with a run."""

import subprocess

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks import GradientNorms, RunFacts
from callbacks.gradient_norms import layer_of
from callbacks.run_facts import uncommitted
from policies import LoRA
from rewards import FunctionReward
from support.errors import ConfigError
from tests.helpers import brevity, build, fit


@pytest.mark.parametrize("lora", [None, LoRA(r=2, alpha=4)], ids=["full", "lora"])
def test_layers_make_up_the_norm_of_all_gradients(reasoner, tmp_path, lora):
    module = build(reasoner, [FunctionReward(brevity)], lora=lora, max_grad_norm=1e-3)
    trainer = fit(module, 2, [GradientNorms()], seed=0, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    norms = {
        name.removeprefix("train/grad_norm/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("train/grad_norm/")
    }
    expected = {"layer_00", "layer_01"} | (set() if lora else {"embed_tokens", "norm"})
    assert expected <= norms.keys() and (lora is None or norms.keys() == expected)
    # Clipping leaves a total norm of exactly the maximum, since brevity's gradients are larger.
    assert float(trainer.callback_metrics["train/grad_norm"]) > 1e-3
    assert torch.tensor(list(norms.values())).norm() == pytest.approx(1e-3, rel=1e-3)


def test_names_of_layers():
    names = {
        "policy.model.model.layers.3.self_attn.q_proj.weight": "layer_03",
        "policy.model.base_model.model.model.layers.11.mlp.up_proj.lora_A.default.weight": "layer_11",
        "policy.model.model.embed_tokens.weight": "embed_tokens",
        "policy.model.lm_head.weight": "lm_head",
        "policy.model.transformer.h.0.attn.c_attn.bias": "layer_00",
        "critic.model.layers.0.mlp.weight": "critic_layer_00",
        "scale": "scale",
    }
    assert {name: layer_of(name) for name in names} == names
    with pytest.raises(ConfigError, match="every_n_rollouts is 0"):
        GradientNorms(0)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["init", "-q"],
        ["-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *command], check=True)
    (tmp_path / "code.py").write_text("old = 1\n")
    subprocess.run(["git", "add", "code.py"], check=True)
    return tmp_path


def test_uncommitted_changes_apply_to_the_commit(repository):
    (repository / "untracked.py").write_text("secret = 1\n")
    patch = uncommitted()
    assert "+old = 1" in patch and "secret" not in patch
    subprocess.run(["git", "rm", "-qf", "code.py"], check=True)
    assert uncommitted() == ""
    subprocess.run(["git", "apply"], input=patch, text=True, check=True)
    assert (repository / "code.py").read_text() == "old = 1\n"
    (repository / "code.py").write_text("line\n" * 100_000)
    subprocess.run(["git", "add", "code.py"], check=True)
    text = uncommitted(limit=1000)
    assert len(text) < 1100 and text.endswith("\n# cut off after 1000 bytes\n") and "+line\n#" in text


def test_no_repository_has_no_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert uncommitted() == ""


def test_a_run_keeps_the_changes_in_its_folder(repository, reasoner):
    trainer = fit(build(reasoner, [FunctionReward(brevity)]), 0, [RunFacts()], folder=repository / "runs")
    (kept,) = (repository / "runs").glob("*/code/uncommitted_*.diff")
    assert kept.read_text() == uncommitted() and trainer.global_step == 0
