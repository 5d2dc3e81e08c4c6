"""The engine against naive forwards, one row at a time and without padding."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from policies import completion_logprobs
from rollouts import BatchPlan, SamplingParams, TransformersEngine
from support.errors import ConfigError
from support.seeding import isolated_rng

PROMPTS = [[5, 6, 7, 8], [9], [4, 4, 11]]
ROWS = [{"id": i} for i in range(3)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, initializer_range=0.4,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def roll(model, sampling, seed=1, pad=0, **options):
    with isolated_rng(seed):
        return TransformersEngine([2], pad, **options).generate(model, PROMPTS, ROWS, 4, sampling)


def naive(model, batch, row, temperature=1.0, top_k=0):
    """Log-probs of one completion by one unpadded forward."""
    prompt = PROMPTS[row // 4]
    completion = batch.completion_ids[row, : int(batch.lengths[row])]
    ids = torch.cat([torch.tensor(prompt), completion])[None]
    logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    return logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 0), (1.3, 4)])
@pytest.mark.parametrize("pad", [0, 2])
@torch.no_grad()
def test_behaviour_logprobs_are_those_of_the_sampled_distribution(model, temperature, top_k, pad):
    batch = roll(model, SamplingParams(10, temperature, top_k=top_k), pad=pad, micro_batch=5)
    assert {"eos", "length"} == set(batch.finish_reasons)
    for row in range(12):
        expected = naive(model, batch, row, temperature, top_k)
        assert torch.allclose(batch.behaviour_logprobs[row, : len(expected)], expected, atol=1e-5)
        ended = batch.completion_ids[row, len(expected) - 1] == 2
        assert ended == (batch.finish_reasons[row] == "eos")


@torch.no_grad()
def test_policy_logprobs_equal_naive_forwards(model):
    batch = roll(model, SamplingParams(10))
    groups = batch.groups
    values, _ = completion_logprobs(
        model, batch.prompt_ids[groups], batch.prompt_mask[groups], batch.completion_ids, batch.completion_mask, temperature=0.8
    )
    for row in range(12):
        expected = naive(model, batch, row, 0.8)
        assert torch.allclose(values[row, : len(expected)], expected, atol=1e-5)


def test_greedy_takes_the_likeliest_token_and_samples_follow_the_seed(model):
    batch = roll(model, SamplingParams(6, temperature=0.0))
    ids = PROMPTS[0]
    for token in batch.completion_ids[0, : int(batch.lengths[0])].tolist():
        assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids = [*ids, token]
    first, again, other = (roll(model, SamplingParams(6), seed).completion_ids for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_sampled_frequencies_match_the_distribution(model):
    with isolated_rng(3):
        batch = TransformersEngine([2], 0).generate(model, [[5, 6]], ROWS[:1], 4000, SamplingParams(1))
    counts = torch.bincount(batch.completion_ids[:, 0], minlength=12) / 4000
    exact = model(torch.tensor([[5, 6]])).logits[0, -1].softmax(-1)
    assert torch.allclose(counts, exact, atol=0.04)  # five standard deviations of a frequency near one half


def test_bad_input_names_the_thing(model):
    with pytest.raises(ConfigError, match="context of 32"):
        TransformersEngine([2], 0).generate(model, [[1] * 30], ROWS[:1], 2, SamplingParams(8))
    with pytest.raises(ConfigError, match="prompt column"):
        TransformersEngine([2], 0).generate(model, [[]], ROWS[:1], 2, SamplingParams(8))
    with pytest.raises(ConfigError, match="group_size is 1"):
        BatchPlan(8, 1)
    with pytest.raises(ConfigError, match="does not divide"):
        BatchPlan(8, 4, updates_per_rollout=3)
    with pytest.raises(ConfigError, match="evenly"):
        BatchPlan(6, 4).describe(processes=4)
    with pytest.raises(ConfigError, match="sampling.top_p"):
        SamplingParams(top_p=0.0)
    assert "32 rows a rollout, 16 on each of 2" in BatchPlan(8, 4, updates_per_rollout=2).describe(2)
