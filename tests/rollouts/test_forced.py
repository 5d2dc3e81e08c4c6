"""Forced tokens are given like a prompt: in every engine a completion goes on behind them, whatever they spell."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from rollouts import EmbeddedEngine, SamplingParams, TransformersEngine, VLLMEngine, continuous_batching
from rollouts.first_tokens import FirstTokens, ended_by_own_tokens
from rollouts.transformers_engine import Way
from tests.rollouts.test_engine import PROMPTS, build, roll
from tests.rollouts.vllm_fake import FakeLLM

NEW = 9


@pytest.fixture(params=["embedded", "embedded, sharing prompts", "transformers", "by length", "vllm"])
def engine(request, monkeypatch):
    if request.param == "embedded, sharing prompts":
        monkeypatch.setattr(continuous_batching, "SHARE_FROM", 0)
    if request.param == "vllm":
        module = ModuleType("vllm")
        module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace
        monkeypatch.setitem(sys.modules, "vllm", module)
        return VLLMEngine()
    if request.param == "by length":
        made = TransformersEngine()
        made.ways[False] = Way(by_length=True, cache=False)
        return made
    return EmbeddedEngine() if request.param.startswith("embedded") else TransformersEngine()


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama"))


@torch.no_grad()
def continued(policy, prompt, given, marks=()):
    """(tokens, reason) of a greedy completion that begins with given tokens, one forward per token."""
    tokens = given[:NEW]
    while len(tokens) < NEW:
        tokens = [*tokens, int(policy.model(torch.tensor([prompt + tokens])).logits[0, -1].argmax())]
        if tokens[-1] in policy.eos_token_ids:
            return tokens, "eos"
        if any(policy.tokenizer.decode(tokens[len(given) :]).endswith(mark) for mark in marks):
            return tokens, "stop"
    return tokens, "length"


def test_forced_tokens_never_end_a_row(engine, policy):
    """A second turn fed back holds the first one's end token; others are nothing but ends, or fill the row."""
    end, pad = policy.eos_token_ids[0], policy.pad_token_id
    mark = policy.tokenizer.decode(10)
    kinds = [[7, end, 8], [end], [end, end], [10], [9, pad, 10, 11], [], [7] * (NEW + 3), [end] * NEW, [7] * 3 + [end]]
    kinds += [[11, 10], [5], [6, end, 10]]
    for marks in ((), (mark,)):
        greedy = SamplingParams(NEW, temperature=0.0, stop=list(marks))
        batch = roll(engine, policy, greedy, forced=kinds, rows_at_once=5)
        for row, given in enumerate(kinds):
            tokens, reason = continued(policy, PROMPTS[row // 4], given, marks)
            length = int(batch.lengths[row])
            assert (batch.completion_ids[row, :length].tolist(), batch.finish_reasons[row]) == (tokens, reason)
            assert batch.action_mask[row, :length].tolist() == [step >= len(given) for step in range(length)]


def test_a_method_s_own_first_tokens_end_a_row(policy):
    """They are the policy's actions, although an engine is forced to take them."""
    end, mark = policy.eos_token_ids[0], policy.tokenizer.decode(10)
    first = [[end], [7, end], [10], [], [9], [7, 9, end, 8], [], [], [], [], [], []]
    sampling = SamplingParams(NEW, temperature=0.0, stop=[mark])
    batch = FirstTokens(first, [[-1.0] * len(row) for row in first]).mark(
        roll(EmbeddedEngine(), policy, sampling, forced=first)
    )
    before = batch.lengths.clone()
    cut = ended_by_own_tokens(batch, policy, sampling)
    assert cut.lengths.tolist() == [1, 2, 1, before[3], before[4], 3, *before[6:].tolist()]
    assert [cut.finish_reasons[row] for row in (0, 1, 2, 5)] == ["eos", "eos", "stop", "eos"]
    assert [cut.finish_reasons[row] for row in (3, 4)] == [batch.finish_reasons[row] for row in (3, 4)]
    assert cut.own_first[:6].tolist() == [1, 2, 1, 0, 1, 3]
