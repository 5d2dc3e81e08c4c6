"""Recurrent policies: decoding in the embedded engine, conversations, log-probs of updates, and training."""

import warnings

import pytest
import torch

from assets.make_untrained import reasoner_tokenizer, save_rodimus
from benchmarks.tiny_models import enlarge
from datamodules import Demonstrations
from lightning_modules import SFT
from policies import LoRA, Policy, PolicyParams
from rewards import FunctionReward
from rollouts import EmbeddedEngine, SamplingParams, TransformersEngine
from rollouts.decoder import Decoder
from rollouts.recurrent_decoder import RecurrentDecoder
from support.seeding import isolated_rng
from tests.helpers.talks import Fuzz
from tests.helpers.training import adamw, build, fit

PROMPTS = [[5 + (3 * i) % 40 for i in range(22)], [9, 14, 6], [4 + (7 * i) % 30 for i in range(9)], [8] * 40]


def made(folder, plus):
    torch.manual_seed(3)
    save_rodimus(folder, reasoner_tokenizer(), plus, hidden=32, layers=2)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rodimus+, which has every kind of state."""
    return made(tmp_path_factory.mktemp("plus"), plus=True)


def lively(folder, **settings):
    """A policy whose completions end at different lengths."""
    policy = Policy(PolicyParams(folder, **settings))
    torch.manual_seed(4)
    enlarge(policy.model)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[policy.eos_token_ids[0]] *= 2
    return policy


def rolled(engine, policy, *, time=24, environment=None, **options):
    with isolated_rng(1):
        rows = [{"id": i} for i in range(len(PROMPTS))]
        return engine.generate(policy, PROMPTS, rows, 3, SamplingParams(time), environment=environment, **options)


def same(batch, expected):
    assert torch.equal(batch.completion_ids, expected.completion_ids)
    assert torch.allclose(batch.behaviour_logprobs, expected.behaviour_logprobs, atol=1e-4)
    assert batch.finish_reasons == expected.finish_reasons


def plain_logprobs(policy, batch):
    """Of every completion's tokens, by one forward without padding per row."""
    groups, values = batch.prompt_groups(torch.arange(len(batch.completion_ids))), []
    for row, owner in enumerate(groups.owner.tolist()):
        prompt = groups.prompt_ids[owner][groups.prompt_mask[owner]]
        completion = groups.completion_ids[row][groups.completion_mask[row]]
        logits = policy.model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        values.append(logits.log_softmax(-1).gather(1, completion[:, None])[:, 0])
    return torch.cat(values)


@pytest.mark.parametrize("plus", [False, True])
def test_the_engine_decodes_recurrent_models_itself(plus, tmp_path):
    policy = lively(made(tmp_path, plus))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none about another engine, or another way of scoring
        expected = rolled(EmbeddedEngine(), policy)
        same(rolled(EmbeddedEngine(), policy, rows_at_once=5), expected)  # rows leave and join
        same(rolled(TransformersEngine(), policy), expected)
        assert len(set(expected.lengths.tolist())) > 3
        policy.train()
        groups = expected.prompt_groups(torch.arange(len(expected.completion_ids)))
        scored = policy.logprobs(groups)[0]
    assert policy.scoring == "padded"
    plain = plain_logprobs(policy, expected).detach()
    assert torch.allclose(scored[expected.completion_mask].detach(), plain, atol=1e-4)
    assert torch.allclose(expected.behaviour_logprobs[expected.completion_mask], plain, atol=1e-4)


def test_gradients_of_an_update_are_those_of_plain_forwards(folder):
    """No row's state reaches another one: prompts and completions of all lengths in one batch."""
    policy = lively(folder)
    batch = rolled(EmbeddedEngine(), policy)
    policy.train()
    groups = batch.prompt_groups(torch.arange(len(batch.completion_ids)))
    weights = torch.linspace(-1, 1, len(batch.completion_ids))[:, None].expand(batch.completion_mask.shape)
    weights = weights[batch.completion_mask]
    gradients = []
    for logprobs in (policy.logprobs(groups)[0][batch.completion_mask], plain_logprobs(policy, batch)):
        policy.zero_grad()
        (weights * logprobs).sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in policy.model.named_parameters()})
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        assert bool(gradient.isfinite().all()), name
        assert float((gradient - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max())), name


@pytest.mark.parametrize("waits", [False, True])
def test_conversations_go_on_from_the_state(folder, waits):
    policy = lively(folder)
    expected = rolled(EmbeddedEngine(), policy, environment=Fuzz(), time=40)
    assert len(set(expected.turns.counts.tolist())) > 2
    again = rolled(EmbeddedEngine(), policy, environment=Fuzz(waits), time=40, rows_at_once=5)
    same(again, expected)
    other = TransformersEngine()
    same(rolled(other, policy, environment=Fuzz(), time=40), expected)
    assert not other.ways[True].carried  # a state takes up the padding behind a turn, which cannot be hidden later


def test_adapters_act_and_dropout_does_not(folder):
    policy = lively(folder, lora=LoRA(r=4, dropout=0.5))
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn_like(weight))  # larger ones amplify rounding beyond 1e-4
    policy.train()
    batch = rolled(EmbeddedEngine(), policy)
    policy.eval()
    with torch.no_grad():
        plain = plain_logprobs(policy, batch)
        with policy.model.disable_adapter():
            assert float((plain_logprobs(policy, batch) - plain).abs().mean()) > 1e-2
    assert torch.allclose(batch.behaviour_logprobs[batch.completion_mask], plain, atol=1e-4)


@torch.no_grad()
def test_the_memory_of_decoding_does_not_grow(folder, reasoner):
    sizes = {}
    for name in (folder, reasoner):
        decoder = EmbeddedEngine()._decoder(Policy(PolicyParams(name)), PROMPTS[0], torch.float32, False)
        cache = decoder.cache()
        for step in range(40):
            cache.reserve(3, step + 1)
            tokens = torch.full((3,), 5)
            decoder.step(tokens, tokens * 0 + step, tokens * 0 + step, step, cache)
            sizes.setdefault(name, []).append(cache.nbytes)
    assert len(set(sizes[folder])) == 1 and len(set(sizes[reasoner])) > 3
    # Two layers: 3 convolved tokens of 64, 32 x 64 numbers of memory, 15 tokens with a key of 8 and 4 values of 8.
    assert sizes[folder][0] == 3 * (8 + 4 * 2 * (3 * 64 + 32 * 64 + 15 * 5 * 8))


def test_other_models_keep_the_other_decoder(reasoner):
    policy = Policy(PolicyParams(reasoner)).requires_grad_(False)
    assert isinstance(EmbeddedEngine()._decoder(policy, [5, 6, 7], torch.float32, False), Decoder)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not a recurrent model of the project"):
        RecurrentDecoder(policy.bare, torch.float32)


def digits(prompts, completions, **columns):
    return [float(sum(c.isdigit() for c in text)) for text in completions]


def test_grpo_and_sft_train_it(folder):
    before = [weight.detach() for weight in Policy(PolicyParams(folder)).model.parameters()]
    module = build(folder, [FunctionReward(digits)], optimizer=adamw(3e-3), sampling=SamplingParams(12))
    fit(module, steps=2, seed=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, module.policy.model.parameters(), strict=True))
    data = Demonstrations("arithmetic", batch_size=8, train_size=64, val_size=8, seed=0)
    sft = SFT(PolicyParams(folder, gradient_checkpointing=True), optimizer=adamw(5e-3))
    fit(sft, steps=1, seed=0, data=data)
    first = float(sft.loss(data.train_data[:16]).detach())
    fit(sft, steps=8, seed=0, data=data)
    rows = data.train_data[:16]
    with torch.no_grad():
        assert float(sft.loss(rows)) < 0.9 * first
        alone = torch.stack([torch.stack(sft.summed_loss([row])) for row in rows]).sum(0)
        assert torch.allclose(sft.loss(rows), alone[0] / alone[1], atol=1e-5)  # padding teaches nothing
