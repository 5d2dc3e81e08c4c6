"""A model's folder is data: nothing in it is executed, and a model that is not whole is refused."""

import json
import pickle
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cli.memory_estimate import ModelSize
from policies import Policy, PolicyParams, Scorer, load_tokenizer
from support.errors import ConfigError
from tests.helpers.payload import Payload


@pytest.fixture
def folder(reasoner, tmp_path):
    return shutil.copytree(reasoner, tmp_path / "model")


def test_the_payload_works(tmp_path):
    """Otherwise the tests below would show nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    torch.save({"x": Payload(tmp_path / "executed_by_torch")}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "executed").exists() and (tmp_path / "executed_by_torch").exists()


@pytest.mark.parametrize("load", [Policy, Scorer])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_and_not_read(folder, tmp_path, load, name):
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload(tmp_path / "executed")}, folder / name)
    with pytest.raises(ConfigError, match=rf"{name}, a pickle.*save_pretrained"):
        load(PolicyParams(str(folder)))
    assert not (tmp_path / "executed").exists()


def test_pickles_beside_safetensors_are_not_read(folder, tmp_path):
    torch.save({"x": Payload(tmp_path / "executed")}, folder / "pytorch_model.bin")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    Policy(PolicyParams(str(folder)))
    assert not (tmp_path / "executed").exists()


def test_pickled_weights_named_by_an_adapter(folder, tmp_path):
    """A folder may name an adapter, whose weights transformers would load as well."""
    config = {
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(folder),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"base_model.model.x": Payload(tmp_path / "executed")}, folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match="adapter_config.json"):
        Policy(PolicyParams(str(folder)))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_model_does_not_run(folder, tmp_path, file, known):
    (folder / "modeling_x.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\nclass X: pass\n")
    data = json.loads((folder / file).read_text())
    data["auto_map"] = {
        "AutoConfig": "modeling_x.X",
        "AutoModelForCausalLM": "modeling_x.X",
        "AutoModel": "modeling_x.X",
        "AutoTokenizer": ["modeling_x.X", "modeling_x.X"],
    }
    if not known:
        data |= {"model_type": "newmodel", "architectures": ["X"], "tokenizer_class": "X"}
    (folder / file).write_text(json.dumps(data))
    if known or file == "tokenizer_config.json":
        try:
            Policy(PolicyParams(str(folder)))
        except ConfigError:
            pass
    else:
        with pytest.raises(ConfigError, match="cannot be loaded"):
            Policy(PolicyParams(str(folder)))
    assert not (tmp_path / "executed").exists()


def test_a_converted_folder_loads(folder, tmp_path):
    """The advice of the message works."""
    torch.save(dict(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    shutil.copytree(folder, tmp_path / "new")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "pytorch_model.bin").unlink()
    Policy(PolicyParams(str(tmp_path / "new")))


def test_an_incomplete_model_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "q_proj" in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != lost},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ConfigError, match=f"lacks 1 of its weights, among them {lost}"):
        Policy(PolicyParams(str(folder)))
    save_file(weights | {lost: torch.zeros(3, 5)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Policy(PolicyParams(str(folder)))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:7], b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ConfigError, match="cannot be loaded"):
            Policy(PolicyParams(str(folder)))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"vocab_size": "x"}', '{"model_type": "llama", "num_hidden_layers": -1}', "\ud800"]
)
def test_broken_files_of_a_model_end_in_a_message(folder, file, text):
    (folder / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        Policy(PolicyParams(str(folder)))
    except ConfigError as error:
        assert str(folder) in str(error)


def test_a_hostile_chat_template_is_data(folder, tmp_path):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match="chat template"):
        Policy(PolicyParams(str(folder))).encode("x")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('system role not supported') }}")
    with pytest.raises(ConfigError, match="system role not supported"):
        Policy(PolicyParams(str(folder))).encode("x")
    assert load_tokenizer(str(folder)).chat_template


def change_config(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.mark.parametrize(
    "value", ["evil/kernel", "evil/kernel@main", "evil/kernel:attention", "paged|evil/kernel", {"": "evil/kernel"}]
)
@pytest.mark.parametrize(
    "key", ["_attn_implementation", "attn_implementation", "experts_implementation", "text_config"]
)
def test_kernels_of_the_hub_are_refused(folder, monkeypatch, key, value):
    loaded = []
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", lambda *a, **k: loaded.append(a))
    monkeypatch.setattr("transformers.integrations.hub_kernels.is_kernels_available", lambda *a, **k: True)
    change_config(folder, **{key: {"attn_implementation": value} if key == "text_config" else value})
    for load in (Policy, Scorer, ModelSize.of):
        with pytest.raises(
            ConfigError, match=r"config.json of .* sets .*implementation.*evil/kernel.*kernel of the hub"
        ):
            load(PolicyParams(str(folder)))
    assert loaded == []


@pytest.mark.parametrize("where", ["num_hidden_layers", "text_config"])
def test_an_absurd_number_of_layers_is_refused_at_once(folder, where):
    change_config(folder, **{where: 100_000 if where != "text_config" else {"num_hidden_layers": 100_000}})
    started = time.monotonic()
    for load in (Policy, Scorer, ModelSize.of):
        with pytest.raises(ConfigError, match="num_hidden_layers to 100000, and at most 1000 are read"):
            load(PolicyParams(str(folder)))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model_type": 7}', '{"model_type": "llama", "vocab_size": "x"}', "[" * 5000]
)
def test_the_plan_reads_a_broken_config_as_the_run_does(folder, text):
    (folder / "config.json").write_text(text)
    for load in (Policy, ModelSize.of):
        with pytest.raises(ConfigError, match=str(folder)):
            load(PolicyParams(str(folder)))
