"""The memory table counts the weights that transformers and peft would make."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from benchmarks.model_shapes import SHAPES


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[5]], ids=lambda shape: shape.name)
def test_weights_and_adapters_are_counted(shape):
    kind, config = (Qwen2ForCausalLM, Qwen2Config) if shape.bias else (LlamaForCausalLM, LlamaConfig)
    with torch.device("meta"):
        model = kind(config(**shape.config))
        assert sum(p.numel() for p in model.parameters()) == shape.weights
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == shape.adapters(8)


def test_the_shapes_are_those_of_the_published_models():
    published = {
        "SmolLM2-135M": 134_515_008,
        "Qwen2.5-0.5B": 494_032_768,
        "Qwen2.5-1.5B": 1_543_714_304,
        "Qwen2.5-7B": 7_615_616_512,
    }
    assert {shape.name: shape.weights for shape in SHAPES if shape.name in published} == published
