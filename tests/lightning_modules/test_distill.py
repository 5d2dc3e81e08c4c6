"""Distillation: losses beside plain forwards, mixtures, the student's own responses, memory, refusals."""

import pytest
import torch

from assets.make_untrained import assistant_tokenizer, reasoner_tokenizer, save_random
from datamodules import Demonstrations
from lightning_modules import Distill, Teacher
from objectives import Divergence
from policies import LoRA, Policy, PolicyParams, distributions
from rollouts import SamplingParams
from support.errors import ConfigError
from tests.helpers import adamw, fit, sgd, weights
from tests.lightning_modules.test_preference_tuning import Largest

ROWS = [
    {"id": "0", "prompt": "1+2=?", "prefix": "", "response": "1+2+0=3</think>3"},
    {"id": "1", "prompt": "12+30=?", "prefix": "</think>", "response": "42"},
]


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """Another untrained model with the reasoner's tokenizer."""
    torch.manual_seed(11)
    folder = tmp_path_factory.mktemp("aligned")
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    save_random(folder, reasoner_tokenizer(), max_position_embeddings=256, **sizes)
    return str(folder)


def made(model, teacher, divergence="reverse", lora=None, packing=True, **options):
    policy = PolicyParams(model, lora=lora, packing=packing)
    module = Distill(policy, teacher=teacher, divergence=Divergence(divergence), **({"optimizer": sgd(0.3)} | options))
    module.configure_model()
    return module


def plain_logits(folder, row):
    """Logits that predict the response's tokens, by one plain forward."""
    policy = Policy(PolicyParams(folder))
    encode = policy.tokenizer
    prefix = encode(row["prefix"], add_special_tokens=False)["input_ids"]
    response = [*encode(row["response"], add_special_tokens=False)["input_ids"], encode.eos_token_id]
    ids = torch.tensor([policy.encode(row["prompt"]) + prefix + response])
    return policy.model(input_ids=ids).logits[0, -len(response) - 1 : -1]


@pytest.mark.parametrize("kind", ["reverse", "forward", "jensen_shannon"])
@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.5, 1.0, 2.0])
def test_the_loss_is_that_of_plain_forwards(reasoner, aligned, weight, kind):
    module = made(reasoner, Teacher(aligned, weight=weight), kind)
    with torch.no_grad():
        values = []
        for row in ROWS:
            start = plain_logits(reasoner, row)
            teacher = weight * plain_logits(aligned, row) + (1 - weight) * start
            values.append(Divergence(kind)(start, teacher))
        assert float(module.loss(ROWS)) == pytest.approx(float(torch.cat(values).mean()), abs=1e-5)
    assert len(module._teachers) == (weight != 0) and module.with_reference == (weight != 1)


@pytest.mark.parametrize("packing", [True, False])
def test_chunks_change_neither_loss_nor_gradient(reasoner, aligned, monkeypatch, packing):
    losses, gradients = [], []
    for tile in (2**22, 3 * 90):
        monkeypatch.setattr(distributions, "TILE", tile)
        module = made(reasoner, Teacher(aligned), packing=packing)
        loss = module.loss(ROWS)
        losses.append(float(loss))
        gradients.append(torch.autograd.grad(loss, list(module.policy.model.parameters())))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)])
@pytest.mark.parametrize("reference", [True, False])
def test_lambda_0_stays_at_the_reference_and_more_approaches_the_teacher(reasoner, aligned, lora, reference):
    given = reasoner if reference else None
    data = Demonstrations("arithmetic", batch_size=4, train_size=32, val_size=4, seed=1)
    still = made(reasoner, Teacher(aligned, given, 0.0), lora=lora)
    before = weights(still)
    trainer = fit(still, 2, data=data, seed=0)
    assert abs(float(trainer.callback_metrics["train/loss"])) < 1e-6
    assert torch.allclose(weights(still), before, atol=1e-5)
    moving = made(reasoner, Teacher(aligned, given, 1.5), lora=lora, optimizer=adamw(3e-3))
    first = float(moving.loss(ROWS))
    fit(moving, 8, data=data, seed=0)
    assert float(moving.loss(ROWS)) < 0.9 * first
    assert not any(".teacher" in name or aligned in name for name in moving.state_dict())


def test_the_students_own_responses_depend_on_the_step_and_the_row_only(reasoner, aligned):
    sampling = SamplingParams(max_new_tokens=12)
    data = Demonstrations("arithmetic", batch_size=4, train_size=32, val_size=4, seed=1)
    module = made(reasoner, Teacher(aligned), on_policy=1.0, sampling=sampling)
    rows = module.sampled(ROWS, 3)
    assert rows == module.sampled(ROWS, 3) != module.sampled(ROWS, 4)
    assert all(len(row["sampled_ids"]) <= 12 for row in rows)
    groups = module.groups(rows)
    assert [ids[mask].tolist() for ids, mask in zip(groups.completion_ids, groups.completion_mask, strict=True)] == [
        row["sampled_ids"] for row in rows
    ]
    trainer = fit(module, 2, data=data, seed=0)
    assert 1 <= float(trainer.callback_metrics["train/length"]) <= 12
    lengths = set()
    mixed = made(reasoner, Teacher(aligned), on_policy=0.5, sampling=sampling)
    plain = mixed.sampled
    mixed.sampled = lambda rows, *key: lengths.add(key) or plain(rows, *key)
    fit(mixed, 8, data=data, seed=0)
    assert 0 < len(lengths) < 8
    without = [{"prompt": row["prompt"]} for row in ROWS]
    assert float(module.loss(without)) > 0, "prompts suffice where all responses are sampled"
    with pytest.raises(ConfigError, match="Distill needs a `response` in every row"):
        mixed.loss(without)


def test_memory_is_flat_in_the_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(distributions, "TILE", 4096)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    largest = {}
    for vocabulary in (2_000, 8_000):
        torch.manual_seed(0)
        save_random(tmp_path / str(vocabulary), reasoner_tokenizer(), max_position_embeddings=64, **sizes)
        folder = str(tmp_path / str(vocabulary))
        module = made(folder, Teacher(folder, weight=2.0))
        module.loss(ROWS)  # chooses the way of scoring, and loads the teacher
        for model in (module.policy.bare, module.policy.reference, module._teachers[0].bare):
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        with Largest() as seen:
            module.loss(ROWS).backward()
        largest[vocabulary] = seen.entries
        assert seen.entries < int(module.groups(ROWS).completion_mask.sum()) * vocabulary
    assert largest[8_000] <= 8_000 * 8


def test_models_that_cannot_be_compared_are_named(reasoner, assistant, aligned, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer of the teacher .* has other tokens"):
        made(reasoner, Teacher(assistant)).loss(ROWS)
    with pytest.raises(ConfigError, match="more than max_length=9"):
        made(reasoner, Teacher(aligned), max_length=9).loss(ROWS)
    with pytest.raises(ConfigError, match=r"model\.on_policy is 1\.5; it is a probability"):
        made(reasoner, Teacher(aligned), on_policy=1.5)
    assert assistant_tokenizer().get_vocab() != reasoner_tokenizer().get_vocab()


def test_a_resumed_run_ends_with_the_same_bits(reasoner, aligned, tmp_path):
    data = Demonstrations("arithmetic", batch_size=4, train_size=32, val_size=4, seed=1)

    def run(steps, ckpt_path=None):
        sampling = SamplingParams(max_new_tokens=8)
        module = made(reasoner, Teacher(aligned), on_policy=0.5, sampling=sampling, optimizer=adamw(1e-2))
        return module, fit(module, steps, data=data, seed=0, ckpt_path=ckpt_path)

    whole, half = run(6), run(3)
    half[1].save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(6, tmp_path / "half.ckpt")
    assert torch.equal(weights(resumed), weights(whole[0])) and not torch.equal(weights(half[0]), weights(resumed))
