"""Packed forwards against one unpadded forward per row: group shapes, models, kinds of attention, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from policies import PolicyParams, PromptGroups, packed_logprobs, padded_logprobs
from policies.packing import SHARED_PREFIX, can_pack
from support.errors import ConfigError

SHAPE = {
    "vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama without shared heads": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
}


def build(name, attention=SHARED_PREFIX):
    torch.manual_seed(0)
    config, model, changes = MODELS[name]
    return model(config(**{**SHAPE, **changes}, attn_implementation=attention))


def groups_of(prompts, completions, generator):
    """prompts: lengths. completions: (prompt, length) of each row, in any order."""

    def left(lengths, right):
        width = max(lengths)
        steps = torch.arange(width)
        counts = torch.tensor(lengths)[:, None]
        mask = steps < counts if right else steps >= width - counts
        return torch.randint(1, 30, mask.shape, generator=generator) * mask, mask

    ids, mask = left(prompts, right=False)
    rows, row_mask = left([length for _, length in completions], right=True)
    return PromptGroups(ids, mask, torch.tensor([owner for owner, _ in completions]), rows, row_mask)


def naive(model, groups, temperature):
    """One forward per row without padding: a list of log-probs."""
    values = []
    for row, owner in enumerate(groups.owner.tolist()):
        prompt = groups.prompt_ids[owner][groups.prompt_mask[owner]]
        completion = groups.completion_ids[row][groups.completion_mask[row]]
        logits = (
            model(torch.cat([prompt, completion])[None], use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature
        )
        values.append(logits.log_softmax(-1).gather(1, completion[:, None])[:, 0])
    return values


def gradients(model, values, weights):
    model.zero_grad()
    sum((v * w).sum() for v, w in zip(values, weights, strict=True)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).flatmap(
    lambda prompts: st.tuples(
        st.just(prompts),
        st.lists(st.tuples(st.integers(0, len(prompts) - 1), st.integers(1, 8)), min_size=1, max_size=9),
        st.integers(0, 2**31),
    )
)


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=15, deadline=None)
@given(shape=shapes)
def test_packed_forwards_equal_one_by_one_forwards(name, shape):
    prompts, completions, seed = shape
    generator = torch.Generator().manual_seed(seed)
    groups = groups_of(prompts, completions, generator)
    packed_model, plain = build(name).double(), build(name, "eager").double()
    weights = [torch.randn(length, generator=generator) for _, length in completions]
    expected = naive(plain, groups, 0.8)
    for values, entropies in (packed_logprobs(packed_model, groups, 0.8), padded_logprobs(packed_model, groups, 0.8)):
        found = [value[mask] for value, mask in zip(values, groups.completion_mask, strict=True)]
        assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-5
        ours, theirs = gradients(packed_model, found, weights), gradients(plain, expected, weights)
        expected = naive(plain, groups, 0.8)
        scale = max(float(g.abs().max()) for g in theirs.values())
        assert all(float((ours[n] - theirs[n]).abs().max()) < 1e-5 * max(scale, 1) for n in theirs)
        assert bool((entropies[groups.completion_mask] >= 0).all())


@pytest.mark.parametrize("attention", ["eager", "sdpa", SHARED_PREFIX])
def test_every_attention_backend_gives_the_same(attention):
    groups = groups_of([5, 2], [(0, 4), (0, 1), (1, 7)], torch.Generator().manual_seed(0))
    model = build("llama", attention)
    found = padded_logprobs(model, groups, 1.0)[0]
    expected = naive(build("llama", "eager"), groups, 1.0)
    assert all(torch.allclose(found[i, : len(e)], e, atol=1e-5) for i, e in enumerate(expected))


def test_what_a_token_sees_is_its_prompt_and_its_row():
    """Changing one completion changes no other, and changing a prompt changes its own rows only."""
    groups = groups_of([4, 3], [(0, 5), (0, 5), (1, 5)], torch.Generator().manual_seed(1))
    model = build("llama")
    before = packed_logprobs(model, groups)[0]
    other = PromptGroups(
        groups.prompt_ids, groups.prompt_mask, groups.owner, groups.completion_ids.clone(), groups.completion_mask
    )
    other.completion_ids[0] = 29 - other.completion_ids[0]
    after = packed_logprobs(model, other)[0]
    assert torch.allclose(before[1:], after[1:], atol=1e-6) and not torch.allclose(before[0], after[0])
    other = PromptGroups(
        groups.prompt_ids.clone(), groups.prompt_mask, groups.owner, groups.completion_ids, groups.completion_mask
    )
    other.prompt_ids[1] = (29 - other.prompt_ids[1]) * other.prompt_mask[1]
    after = packed_logprobs(model, other)[0]
    assert torch.allclose(before[:2], after[:2], atol=1e-6) and not torch.allclose(before[2], after[2])


def test_models_with_windows_are_not_packed():
    from transformers import MistralForCausalLM

    assert not can_pack(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)))
    assert can_pack(build("llama"))


def test_forwards_that_differ_are_not_used(reasoner, monkeypatch):
    from policies import Policy, start_checks

    groups = groups_of([3], [(0, 4)], torch.Generator().manual_seed(2))
    expected = Policy(PolicyParams(reasoner, packing=False)).logprobs(groups)[0]
    for way, next_way in (("packed", "padded"), ("padded", "by_length")):
        score, name = start_checks.WAYS[way]
        wrong = lambda *given, score=score: tuple(v + 1 for v in score(*given))  # noqa: E731
        monkeypatch.setitem(start_checks.WAYS, way, (wrong, name))
        made = Policy(PolicyParams(reasoner))
        with pytest.warns(UserWarning, match=f"{name} differ by 1 in the mean log-prob"):
            values = made.logprobs(groups)[0]
        assert made.scoring == next_way
        torch.testing.assert_close(values, expected)
    monkeypatch.setitem(start_checks.WAYS, "by_length", (wrong, "forwards by length"))
    with pytest.raises(ConfigError, match=r"cannot be trained: .*packed forwards differ by 1 .*forwards by length"):
        Policy(PolicyParams(reasoner)).logprobs(groups)
