"""The plan of a run, against numbers worked out by hand and against the memory that tiny models really occupy."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assets.make_untrained import reasoner_tokenizer, save_rodimus
from cli.memory_estimate import ModelSize, states_of
from lightning_modules import GRPO, KLPenalty
from main import main
from policies import LoRA, Policy, PolicyParams, PromptGroups
from rewards import Reward
from rollouts import BatchPlan
from rollouts.decoder import Decoder
from rollouts.recurrent_decoder import RecurrentDecoder
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A model with grouped heads that are wider than hidden size / heads, and an output layer of its own."""
    folder, tokenizer = tmp_path_factory.mktemp("grouped"), reasoner_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, eos_token_id=1, pad_token_id=0,
        bos_token_id=None, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_parameters_are_counted_exactly(grouped, reasoner):
    for folder in (grouped, reasoner, str(ROOT / "assets/tiny_assistant")):
        for lora in (None, LoRA(r=3)):
            params = PolicyParams(folder, lora=lora)
            size, own = ModelSize.of(params), list(Policy(params).model.parameters())
            assert size.parameters == sum(p.numel() for p in own)
            assert size.trained == sum(p.numel() for p in own if p.requires_grad)
    with pytest.raises(ConfigError, match="does not exist"):
        ModelSize.of(PolicyParams("runs/none"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_is_sized_exactly(grouped, dtype):
    params = PolicyParams(grouped, dtype=dtype, packing=False)
    model = Policy(params).model.eval()
    cache = model(input_ids=torch.zeros(5, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    own = Decoder(model, getattr(torch, dtype)).cache()
    own.reserve(5, 7)
    assert ModelSize.of(params).cache_bytes(5, 7) == held == own.states.numel() * own.states.element_size()


def test_the_states_of_recurrent_models_are_sized_exactly(tmp_path):
    save_rodimus(tmp_path, reasoner_tokenizer(), plus=True, hidden=32, layers=2)
    params = PolicyParams(str(tmp_path))
    decoder = RecurrentDecoder(Policy(params).model, torch.float32)
    decoder_cache = decoder.cache()
    decoder_cache.reserve(5, 7)
    assert ModelSize.of(params).cache_bytes(5, 7) == ModelSize.of(params).cache_bytes(5, 700) == decoder_cache.nbytes


@pytest.mark.parametrize(("prompts", "group", "prompt", "width"), [(4, 8, 12, 64), (2, 4, 60, 50)])
def test_activations_are_estimated_to_a_fifth(grouped, prompts, group, prompt, width):
    """Against the bytes of everything that autograd saves in the forward pass of an update, weights aside."""
    policy = Policy(PolicyParams(grouped))
    ids, rows = torch.full((prompts, prompt), 5), prompts * group
    owner, completion = torch.arange(prompts).repeat_interleave(group), torch.full((rows, width), 6)
    groups = PromptGroups(ids, torch.ones_like(ids).bool(), owner, completion, torch.ones_like(completion).bool())
    policy.logprobs(groups)
    weights, saved = {p.untyped_storage().data_ptr() for p in policy.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.logprobs(groups)
    measured = sum(size for size, _ in saved.values())
    estimate = ModelSize.of(PolicyParams(grouped)).activation_bytes(prompts, prompt, rows, width)
    assert 0.8 < estimate / measured < 1.2


def test_states_of_optimisers():
    assert states_of(lambda p: torch.optim.AdamW(p, lr=0.1)) == 2
    assert states_of(lambda p: torch.optim.SGD(p, lr=0.1)) == 0
    assert states_of(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)) == 1


def planned(capsys, *extra):
    main(["plan", f"--config={ROOT}/configs/grpo.yaml", *extra])
    return capsys.readouterr().out


def test_the_plan_of_a_model_without_weights(grouped, tmp_path, monkeypatch, capsys):
    """A folder with a config and a tokenizer alone: nothing else is read, nothing is written."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(grouped, "bare")
    Path("bare/model.safetensors").unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    text = planned(
        capsys, "--model.policy.model=./bare",
        "--model.batch={prompts_per_rollout: 8, group_size: 4, updates_per_rollout: 2, epochs: 2}",
        "--model.sampling.max_new_tokens=10", "--model.kl.coefficient=0.1", "--trainer.max_steps=20",
        "--data.train_size=100", "--data.val_size=30", "--data.levels=[2]", "--trainer.val_check_interval=2",
        "--trainer.accelerator=gpu", "--trainer.devices=2", "--trainer.callbacks=[]", "--model.evaluation.samples=3",
    )  # fmt: skip
    # Prompts of two digits: "dd+dd=?" has 7 tokens, and the template adds its own.
    template = len(Policy(PolicyParams(grouped)).encode("12+34=?"))
    for expected in (
        BatchPlan(8, 4, updates_per_rollout=2, epochs=2).describe(2),
        f"at most 32 x 10 completion tokens + 8 prompts of at most {template} = {320 + 8 * template} tokens",
        f"5 rollouts, 20 optimiser steps, at most {5 * (320 + 8 * template):,} tokens",
        "prompts: 40 drawn from 100, 0.40 epochs",
        "every 2 rollouts, 3 in all with the one before training, each 30 prompts x 3 = 90 completions",
        f"keys and values of 16 rows of {10 + template} tokens",
        "activations of 8 rows at once",
        "none found",
    ):
        assert expected in text
    weights = sum(p.numel() for p in Policy(PolicyParams(grouped)).parameters()) * 4
    for name, size in (
        ("weights", weights),
        ("reference", weights),
        ("optimiser", 2 * weights),
        ("gradients", weights),
    ):
        assert f"{name}: {size / 2**20:.1f} MiB" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--model.kl.estimator=k2"], "kl.estimator: kl.coefficient is 0"),
        (["--model.loss=objectives.ClippedSurrogate", "--model.loss.clip_high=0.3"], "loss.clip_high: with one update"),
        (["--model.batch.update_token_budget=99999"], "batch.update_token_budget 99,999 is more than"),
        (["--model.batch.rollout_micro_batch=128"], "is not less than the 128 rows"),
        (["--model.batch.group_size=1", "--model.advantage=objectives.RunningMean"], "group_size is 1"),
        (["--model.shaping.normalise_rewards=true"], "there is one reward"),
        (["--model.shaping={mask_truncated: true, truncated_scale: 0.5}"], "carry no loss"),
        (["--model.policy.lora={dropout: 0.1}"], "lora.dropout 0.1"),
        (['--model.rewards=[{class_path: rewards.ExactAnswer, init_args: {weight: 0}}]'], "weight 0 are logged"),
        (["--model.rewards=[rewards.Format]", "--model.evaluation.pass_k=1"], "no reward judges correctness"),
        (["--trainer.val_check_interval=100"], "trainer.val_check_interval 100"),
        (["--trainer.callbacks.every_n_rollouts=90"], "RolloutCheckpoint.every_n_rollouts 90"),
        (
            ["--model.lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR", "--model.lr_scheduler.T_max=200"],
            "made for 200 steps and the run has 80, so it ends before",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_are_named(grouped, tmp_path, monkeypatch, capsys, changes, said):
    monkeypatch.chdir(tmp_path)
    text = planned(capsys, f"--model.policy.model={grouped}", *changes)
    assert said in text.split("Settings that do nothing")[1]


class TwoUpdates(GRPO):
    """A method whose own values are a KL estimator and two updates per rollout."""

    def __init__(
        self,
        policy: PolicyParams,
        rewards: list[Reward],
        *,
        batch: BatchPlan = BatchPlan(16, 8, updates_per_rollout=2),  # noqa: B008
        kl: KLPenalty = KLPenalty(0.1, "k2", value_clamp=10.0),  # noqa: B008
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, rewards, batch=batch, kl=kl, **kwargs)


def test_settings_are_compared_with_the_methods_own_values(grouped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "plan", "--model=tests.cli.test_run_plan.TwoUpdates", f"--model.policy.model={grouped}",
        "--model.rewards=[rewards.ExactAnswer]", "--model.sampling.max_new_tokens=8", "--data=ArithmeticPrompts",
    ]  # fmt: skip

    def idle(*extra):
        main([*arguments, *extra])
        return capsys.readouterr().out.split("Settings that do nothing")[1]

    assert "none found" in idle("--model.kl.coefficient=0"), "k2 and the clamp are the method's, not the user's"
    assert "kl.estimator: kl.coefficient is 0" in idle("--model.kl.coefficient=0", "--model.kl.estimator=k3")
    text = idle("--model.batch.updates_per_rollout=1")
    assert "nothing is clipped; TwoUpdates makes 2 updates by default (batch.updates_per_rollout)" in text


def test_a_plan_is_about_rollouts():
    with pytest.raises(ConfigError, match="SFT has no rollouts"):
        main(["plan", f"--config={ROOT}/configs/sft.yaml"])
