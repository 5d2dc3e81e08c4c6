"""Exported folders are loaded by transformers and peft alone, and compute the same as the run's policy."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from callbacks import ExportAdapter, ExportPolicy
from datamodules import ArithmeticPrompts
from lightning_modules import KLPenalty
from policies import LoRA
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit


def length(completions):
    return [float(len(text)) for text in completions]


def train(model, lora, *callbacks, kl=0.0):
    """The policy after two rollouts."""
    module = build(
        model, [FunctionReward(length)], lora=lora, batch=BatchPlan(2, 4), sampling=SamplingParams(max_new_tokens=6),
        kl=KLPenalty(coefficient=kl), optimizer=lambda weights: torch.optim.AdamW(weights, lr=0.05),
    )  # fmt: skip
    fit(module, 2, callbacks, data=ArithmeticPrompts(train_size=8, val_size=2, seed=0))
    return module.policy


@torch.no_grad()
def logits(model, ids):
    return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("kl", [0.0, 0.1], ids=["alone", "with a reference"])
def test_peft_reads_an_adapter_and_transformers_its_merged_model(reasoner, tmp_path, kl):
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    policy = train(reasoner, LoRA(r=4, alpha=8), ExportAdapter(str(adapter)), ExportPolicy(str(merged)), kl=kl)
    message = [{"role": "user", "content": "12+30=?"}]
    ids = AutoTokenizer.from_pretrained(adapter).apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert ids.tolist() == [policy.encode("12+30=?")]
    base = AutoModelForCausalLM.from_pretrained(reasoner)
    before = logits(base, ids)
    policy.model.set_adapter("default")
    expected = logits(policy.model, ids)
    assert (expected - before).abs().max() > 0.01  # something was learned, so that equality says something
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, adapter), ids), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(merged), ids), expected, atol=1e-4, rtol=1e-4
    )
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == reasoner
    assert not list(adapter.glob("model*.safetensors")) and not (merged / "adapter_config.json").exists()


def test_all_weights_are_read_by_transformers(reasoner, tmp_path):
    policy = train(reasoner, None, ExportPolicy(str(tmp_path / "whole")))
    ids = torch.tensor([policy.encode("12+30=?")])
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"), ids),
        logits(policy.model, ids),
        atol=1e-5,
        rtol=1e-5,
    )


def test_an_adapter_of_none_is_refused_before_training(reasoner, tmp_path):
    with pytest.raises(
        ConfigError, match="no LoRA adapter to export; set model.policy.lora, or use callbacks.ExportPolicy"
    ):
        train(reasoner, None, ExportAdapter(str(tmp_path / "adapter")))
    assert not (tmp_path / "adapter").exists()
