"""Models whose config.json says that their weights are quantised: read as plain numbers, or refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.tiny_models import Family, build
from cli.memory_estimate import ModelSize
from policies import LoRA, Policy, PolicyParams
from support.errors import ConfigError

BLOCK = 16


@pytest.fixture
def plain(tmp_path):
    build(Family("llama"), tmp_path / "plain")
    return tmp_path / "plain"


def say(folder, settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))


def test_weights_in_eight_bits_become_plain_ones(plain, tmp_path):
    """Blocks of eight-bit floats and a scale for each, as models are published."""
    stored, expected = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = expected[name] = weight
        if name.endswith("proj.weight"):
            scale = weight.unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).abs().amax((-1, -2)) / 448
            by_entry = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            stored[name], stored[f"{name}_scale_inv"] = (weight / by_entry).to(torch.float8_e4m3fn), scale
            expected[name] = stored[name].float() * by_entry
    save_file(stored, plain / "model.safetensors", metadata={"format": "pt"})
    say(plain, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]})
    policy = Policy(PolicyParams(str(plain), lora=LoRA(r=2)))
    weights = dict(policy.weights())
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    policy.save(tmp_path / "exported")
    assert "quantization_config" not in json.loads((tmp_path / "exported/config.json").read_text())
    assert torch.equal(dict(Policy(PolicyParams(str(tmp_path / "exported"))).weights())[name], expected[name])


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "something new"])
def test_other_forms_are_refused_before_a_weight_is_read(plain, method):
    say(plain, {"quant_method": method, "bits": 4})
    (plain / "model.safetensors").write_bytes(b"")
    for read in (Policy, ModelSize.of):
        with pytest.raises(ConfigError, match=rf"weights are quantised \({method}\)"):
            read(PolicyParams(str(plain)))
