"""The protocol with vLLM, against a stand-in with its own copy of the weights."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from policies import LoRA
from rollouts import SamplingParams, TransformersEngine, VLLMEngine, VLLMServer
from support.errors import ConfigError
from support.seeding import isolated_rng
from tests.helpers.talks import Chat, Fuzz
from tests.rollouts.test_engine import PROMPTS, ROWS, build, naive, roll
from tests.rollouts.vllm_fake import FakeLLM, serve


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    FakeLLM.made.clear()


@pytest.fixture(params=["in process", "server"])
def start(request, tmp_path):
    """policy -> engine"""
    stops = []

    def make(policy):
        if request.param == "in process":
            return VLLMEngine()
        policy.save(tmp_path / "served")
        url, _, stop = serve(FakeLLM(tmp_path / "served"))
        stops.append(stop)
        return VLLMServer(url, str(tmp_path / "handed"))

    yield make
    for stop in stops:
        stop()


@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)])
@torch.no_grad()
def test_weights_follow_the_policy(start, tmp_path, lora):
    policy = build("llama", tmp_path / "model", lora)
    engine = start(policy)
    assert not engine.matches(policy)
    for _ in range(3):
        batch = roll(engine, policy, SamplingParams(8))
        for row in range(12):
            expected = naive(policy, batch, row)
            assert torch.allclose(batch.behaviour_logprobs[row, : len(expected)], expected, atol=1e-5)
            ended = int(batch.completion_ids[row, len(expected) - 1]) in policy.eos_token_ids
            assert ended == (batch.finish_reasons[row] == "eos")
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    loads = FakeLLM.made[0].calls.count("reload")
    roll(engine, policy, SamplingParams(2))
    roll(engine, policy, SamplingParams(2))
    assert FakeLLM.made[0].calls.count("reload") == loads + 1  # unchanged weights are not sent again


def test_greedy_forced_and_stopped_completions(start, tmp_path):
    policy = build("llama", tmp_path / "model")
    engine, plain = start(policy), TransformersEngine()
    greedy = SamplingParams(10, temperature=0.0)
    forced = [[], [10], [11, 12], []] * 3
    for options in ({}, {"forced": forced}):
        ours, theirs = roll(engine, policy, greedy, **options), roll(plain, policy, greedy, **options)
        assert torch.equal(ours.completion_ids, theirs.completion_ids) and torch.equal(
            ours.action_mask, theirs.action_mask
        )
        assert ours.finish_reasons == theirs.finish_reasons
    mark = policy.tokenizer.decode(theirs.completion_ids[0, 2])
    assert len(mark) == 1
    ours, theirs = (roll(made, policy, SamplingParams(10, temperature=0.0, stop=[mark])) for made in (engine, plain))
    assert ours.finish_reasons == theirs.finish_reasons and "stop" in ours.finish_reasons


def test_samples_follow_the_seed_and_differ_within_a_group(start, tmp_path):
    policy = build("llama", tmp_path / "model")
    engine = start(policy)
    first, again, other = (roll(engine, policy, SamplingParams(6), seed).completion_ids for seed in (1, 1, 2))
    assert torch.equal(first, again) and (first.shape != other.shape or not torch.equal(first, other))
    assert len({tuple(row) for row in first[:4].tolist()}) > 1


def test_an_adapter_alone_is_handed_over(tmp_path):
    policy = build("llama", tmp_path / "model", LoRA(r=4, alpha=8))
    url, called, stop = serve(FakeLLM(tmp_path / "model"))
    roll(VLLMServer(url, str(tmp_path / "handed"), sync="adapter"), policy, SamplingParams(3))
    stop()
    path, body = next((path, body) for path, body in called if "lora" in path)
    assert body == {"lora_name": "policy", "lora_path": str(tmp_path / "handed"), "load_inplace": True}
    assert (tmp_path / "handed" / "adapter_model.safetensors").exists()
    assert all(body["model"] == "policy" for path, body in called if path == "/v1/completions")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    policy = build("llama", tmp_path / "model")
    with isolated_rng(0), pytest.raises(ConfigError, match="cannot be reached"):
        VLLMServer("http://127.0.0.1:9").generate(policy, PROMPTS, ROWS, 2, SamplingParams(4))
    with isolated_rng(0), pytest.raises(ConfigError, match="sync: adapter, but the policy has no adapter"):
        VLLMServer("http://127.0.0.1:9", sync="adapter").generate(policy, PROMPTS, ROWS, 2, SamplingParams(4))
    url, _, stop = serve(FakeLLM(tmp_path / "model"))
    with isolated_rng(0), pytest.raises(ConfigError, match="answered 404 to /wrong"):
        VLLMServer(url)._call("POST", "/wrong")
    stop()
    monkeypatch.setitem(sys.modules, "vllm", None)
    with isolated_rng(0), pytest.raises(ConfigError, match=r"pip install 'lightning-posttrain\[vllm\]'"):
        VLLMEngine().generate(policy, PROMPTS, ROWS, 2, SamplingParams(4))


def test_conversations_are_held_by_requests(start, tmp_path):
    """Greedy ones equal those of `generate`; drawn ones have the policy's log-probs and do not repeat their turns."""
    policy = build("llama", tmp_path / "model", max_position_embeddings=160)
    engine, plain, forced = start(policy), TransformersEngine(), [[], [10], [11, 12], []] * 3
    greedy = SamplingParams(90, temperature=0.0)
    for environment, options in ((Chat(), {}), (Fuzz(), {}), (Chat(waits=True), {"forced": forced})):
        ours, theirs = (roll(made, policy, greedy, environment=environment, **options) for made in (engine, plain))
        assert torch.equal(ours.completion_ids, theirs.completion_ids)
        assert torch.equal(ours.action_mask, theirs.action_mask)
        assert torch.equal(ours.turns.number, theirs.turns.number)
        assert ours.turns.finish_reasons == theirs.turns.finish_reasons
    batch = roll(engine, policy, SamplingParams(90), environment=Chat())
    with torch.no_grad():
        for row in range(12):
            expected, chosen = naive(policy, batch, row), batch.action_mask[row, : int(batch.lengths[row])]
            assert torch.allclose(batch.behaviour_logprobs[row, : len(expected)][chosen], expected[chosen], atol=1e-5)
    turns = [batch.completion_ids[:, :8], *(batch.completion_ids[batch.turns.number == turn] for turn in (1, 2))]
    assert not torch.equal(turns[1][:8], turns[2][:8])
    filled = {"environment": Chat(max_turn_tokens=1), "forced": [[5]] * 12}
    ours, theirs = (roll(made, policy, greedy, **filled) for made in (engine, plain))
    assert torch.equal(ours.completion_ids, theirs.completion_ids), "forced tokens fill the first turn"
    assert ours.turns.finish_reasons == theirs.turns.finish_reasons
