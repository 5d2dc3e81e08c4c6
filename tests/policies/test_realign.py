"""The bottom-layer adapter of InRa: identity, training, two paths in every forward and engine, export, refusals."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from assets.make_untrained import reasoner_tokenizer
from benchmarks.families import FAMILIES
from benchmarks.tiny_models import build
from cli.memory_estimate import ModelSize
from datamodules import Demonstrations
from lightning_modules import GRPO, SFT, RewardModel
from main import main
from policies import LoRA, Policy, PolicyParams, PromptGroups
from policies.adapters import stream_outputs
from policies.realign import around_adapter
from rewards import ExactAnswer
from rollouts import EmbeddedEngine, SamplingParams, TransformersEngine, VLLMServer
from support.errors import ConfigError
from support.seeding import isolated_rng
from tests.helpers import ROOT, adamw, fit

BY_NAME = {str(family): family for family in FAMILIES}
PROMPTS = [[7, 20, 33, 9], [40, 41, 12], [60] * 9]
IDS = torch.tensor([[7, 20, 33, 9, 40, 41, 12, 60, 61]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Untrained models of three families, by name."""
    made = {}
    for name in ("llama", "qwen3", "smollm3"):
        made[name] = str(tmp_path_factory.mktemp(name))
        build(BY_NAME[name], made[name])
    return made


def trained(folder, target, **settings):
    """Export, to `target`, a policy whose adapter has moved."""
    policy = Policy(PolicyParams(folder, bottom_adapter=True, **settings))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in stream_outputs(policy.bare.get_decoder().layers[0]):
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    policy.save(target)
    return policy.eval()


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def greedy(engine, policy, group_size=1):
    with isolated_rng("sampling", 0):
        rows = [{"id": str(number)} for number in range(len(PROMPTS))]
        return engine.generate(policy, PROMPTS, rows, group_size, SamplingParams(max_new_tokens=20, temperature=1.0))


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm3"])
def test_both_paths_are_equal_before_training(folders, name):
    original = logits(Policy(PolicyParams(folders[name])).model)
    for weight in (-0.5, 0.0, 0.3, 1.0, 10.0):
        policy = Policy(PolicyParams(folders[name], bottom_adapter=True, realign=weight))
        assert float((logits(policy.model) - original).abs().max()) <= 1e-6
        groups = PromptGroups.of(PROMPTS, PROMPTS, 0, policy.device)
        path_a, path_b = policy.logprobs(groups)[0], Policy(PolicyParams(folders[name])).logprobs(groups)[0]
        assert float((path_a - path_b).detach()[groups.completion_mask].abs().max()) <= 1e-5
        assert policy.scoring == "packed"


@pytest.mark.parametrize("name", ["llama", "qwen3", "smollm3"])
def test_the_exported_model_gives_the_same_logits_in_plain_transformers(folders, name, tmp_path):
    policy = trained(folders[name], tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    start = AutoModelForCausalLM.from_pretrained(folders[name])
    assert torch.allclose(logits(plain), logits(policy.model), atol=1e-5)
    assert not torch.allclose(logits(plain), logits(start), atol=0.1), "the adapter acts"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_hidden_layers"] == start.config.num_hidden_layers + 1 and not config["tie_word_embeddings"]
    assert plain.get_output_embeddings().weight is not plain.get_input_embeddings().weight


@pytest.mark.parametrize(("name", "weight"), [("llama", -0.5), ("llama", 0.0), ("qwen3", 0.4), ("qwen3", 2.0)])
def test_every_forward_and_engine_mixes_the_logits_of_both_paths(folders, name, weight, tmp_path, monkeypatch):
    trained(folders[name], tmp_path)
    aligned, start = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path, folders[name]))
    expected = weight * logits(aligned) + (1 - weight) * logits(start)
    policy = Policy(PolicyParams(str(tmp_path), realign=weight)).eval()
    assert torch.allclose(logits(policy.model), expected, atol=1e-5)
    groups = PromptGroups.of([IDS[0, :4].tolist()], [IDS[0, 4:].tolist()], 0, policy.device)
    scores = expected.log_softmax(-1)[0, 3:-1].gather(1, IDS[0, 4:, None])[:, 0]
    for packing in (True, False):  # the packed forward, and the padded one
        same = Policy(PolicyParams(str(tmp_path), realign=weight, packing=packing))
        assert torch.allclose(same.logprobs(groups)[0][0], scores, atol=1e-4)
        assert same.scoring == ("packed" if packing else "padded")
    with pytest.warns(UserWarning, match="without a cache, slower"):
        slow = greedy(TransformersEngine(), policy, 2)
    for share_from in (1, 10**6):  # rows read their group's prompt, or a copy of it
        monkeypatch.setattr("rollouts.continuous_batching.SHARE_FROM", share_from)
        fast = greedy(EmbeddedEngine(), policy, 2)
        assert torch.equal(fast.completion_ids, slow.completion_ids)
        assert torch.allclose(fast.behaviour_logprobs, slow.behaviour_logprobs, atol=1e-4)


def test_only_the_adapter_learns_and_the_checkpoint_holds_it_alone(reasoner, tmp_path):
    data = Demonstrations("arithmetic", batch_size=4, train_size=32, val_size=4, seed=1)

    def run(steps, ckpt_path=None):
        module = SFT(PolicyParams(reasoner, bottom_adapter=True), optimizer=adamw(1e-2))
        return module, fit(module, steps, data=data, seed=0, ckpt_path=ckpt_path)

    (whole, _), (half, trainer) = run(4), run(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert saved and all(name.startswith("policy.model.model.layers.0.") for name in saved)
    resumed, _ = run(4, tmp_path / "half.ckpt")
    start = Policy(PolicyParams(reasoner))
    for module in (whole, half, resumed):
        with around_adapter(module.policy.bare.get_decoder()):
            assert torch.equal(logits(module.policy.model), logits(start.model)), "lambda 0 is the start"
    assert torch.equal(logits(resumed.policy.model), logits(whole.policy.model))
    assert not torch.allclose(logits(whole.policy.model), logits(start.model), atol=1e-2)


def test_an_exported_adapter_trains_on_and_is_no_adapter_once_all_weights_are_trained(folders, tmp_path):
    first = trained(folders["llama"], tmp_path / "first")
    again = Policy(PolicyParams(str(tmp_path / "first"), bottom_adapter=True))
    assert len(again.bare.get_decoder().layers) == len(first.bare.get_decoder().layers)
    assert {name.split(".")[2] for name, weight in again.model.named_parameters() if weight.requires_grad} == {"0"}
    Policy(PolicyParams(str(tmp_path / "first"))).save(tmp_path / "full")
    with pytest.raises(ConfigError, match="full has no bottom adapter"):
        Policy(PolicyParams(str(tmp_path / "full"), realign=0.5))


def test_the_plan_counts_the_adapter(folders):
    policy = Policy(PolicyParams(folders["llama"], bottom_adapter=True))
    size = ModelSize.of(policy.params)
    assert size.parameters == sum(weight.numel() for weight in policy.model.parameters())
    assert size.trained == sum(weight.numel() for weight in policy.bare.get_decoder().layers[0].parameters())
    assert size.cache_bytes(1, 1) == 3 * 2 * size.key_heads * size.head_size * 4, "two layers and the adapter"


def test_the_reference_is_the_start_until_it_is_reset(folders, tmp_path):
    policy = Policy(PolicyParams(folders["llama"], bottom_adapter=True), with_reference=True)
    groups = PromptGroups.of(PROMPTS, PROMPTS, 0, policy.device)
    start = policy.reference_logprobs(groups)
    with torch.no_grad():
        for weight in stream_outputs(policy.bare.get_decoder().layers[0]):
            weight.add_(0.1)
    assert torch.equal(policy.reference_logprobs(groups), start)
    policy.reset_reference()
    assert torch.equal(policy.reference_logprobs(groups), policy.logprobs(groups)[0])


@torch.no_grad()
def greedily(prompt, models, weight, policy, count=24):
    """Greedy tokens of the mixture, by whole forwards of two models."""
    ids = torch.tensor([policy.encode(prompt)])
    start = ids.shape[1]
    for _ in range(count):
        aligned, original = (model(input_ids=ids).logits[0, -1] for model in models)
        ids = torch.cat([ids, (weight * aligned + (1 - weight) * original).argmax()[None, None]], 1)
        if int(ids[0, -1]) in policy.eos_token_ids:
            break
    return policy.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


@pytest.mark.parametrize("weight", [None, 0.4])
def test_predictions_are_the_greedy_completions_of_the_mixture(folders, tmp_path, monkeypatch, weight):
    monkeypatch.setattr("lightning_modules.sft.PREDICTED", 24)
    trained(folders["llama"], tmp_path)
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (tmp_path, folders["llama"])]
    module = SFT(PolicyParams(str(tmp_path), realign=weight))
    module.configure_model()
    rows = [{"id": str(number), "prompt": text} for number, text in enumerate(("1+2=?", "12+30=?"))]
    predicted = module.predict_step(rows, 0)
    for row, prediction in zip(rows, predicted, strict=True):
        expected = greedily(row["prompt"], models, 1.0 if weight is None else weight, module.policy)
        assert prediction == {"prompt": row["prompt"], "completion": expected}
    assert [made["completion"] for made in predicted] != [
        greedily(row["prompt"], models, 0.0, module.policy) for row in rows
    ]


@pytest.mark.long
def test_lambda_is_chosen_on_the_command_line_behind_a_checkpoint(here, reasoner, capsys):
    small = [f"--model.policy.model={reasoner}", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    main(["fit", f"--config={ROOT}/configs/inra.yaml", *small, "--data.train_size=32"])
    chosen = ["--ckpt_path=last", "--model.policy.realign=0.5"]
    for stage in ("validate", "predict"):
        config = [f"--config={ROOT}/configs/inra.yaml", f"--model.policy.model={reasoner}", "--data.val_size=2"]
        cli = main([stage, *config, *chosen])
        assert cli.model.policy.params.realign == 0.5 and cli.model.policy.params.bottom_adapter
    trained(reasoner, here / "exported")
    for words in (chosen, ["--ckpt_path=exported", "--model.policy.realign=0.5"]):
        capsys.readouterr()
        main(["chat", *words, "--prompt=1+2=?", "--max_new_tokens=4"])
        assert capsys.readouterr().out.strip()


def refusal(**settings):
    with pytest.raises(ConfigError) as refused:
        Policy(PolicyParams(**settings))
    text = str(refused.value)
    assert "\n" not in text and text.count(". ") <= 2
    return text


def test_settings_that_cannot_act_are_refused_by_name(reasoner, folders, tmp_path):
    assert "has no bottom adapter" in refusal(model=reasoner, realign=0.5)
    for value in (float("nan"), float("inf"), "0.5", True):
        assert "set it to a finite number" in refusal(model=reasoner, realign=value)
    assert "one of them decides which weights" in refusal(model=reasoner, bottom_adapter=True, lora=LoRA())
    for name in ("gpt2", "qwen3_moe", "gemma2"):
        build(BY_NAME[name], tmp_path / name)
    assert "GPT2LMHeadModel) cannot have a bottom adapter" in refusal(model=str(tmp_path / "gpt2"), bottom_adapter=True)
    assert "cannot have a bottom adapter" in refusal(model=str(tmp_path / "qwen3_moe"), bottom_adapter=True)
    capped = refusal(model=str(tmp_path / "gemma2"), bottom_adapter=True, realign=0.5)
    assert "changes its logits behind the output layer" in capped
    with pytest.raises(ConfigError, match="for a reward or cost model, which has no next-token logits"):
        RewardModel(PolicyParams(reasoner, bottom_adapter=True)).configure_model()
    params = PolicyParams(reasoner, bottom_adapter=True, realign=0.5)
    with pytest.raises(ConfigError, match=r"model\.policy\.realign is 0\.5, but it mixes two paths at inference"):
        fit(GRPO(params, rewards=[ExactAnswer()]), 1, data=Demonstrations("arithmetic"))
    with pytest.raises(ConfigError, match="VLLMServer computes one path alone"):
        greedy(VLLMServer(), Policy(params))
    assert replace(params, realign=None).frozen_model and reasoner_tokenizer().eos_token_id is not None
