"""Sequences beyond what a model computes as a policy must, wherever they come from."""

import pytest
import torch
from transformers import Gemma3Config

from benchmarks.architectures import plain_logprobs
from benchmarks.families import FAMILIES
from benchmarks.tiny_models import WINDOW, build
from lightning_modules.core.data_checks import check_prompts
from policies import Policy, PolicyParams, Scorer
from policies.config_checks import context_of
from policies.packing import limits
from policies.supervised import encode_responses
from rollouts import EmbeddedEngine, SamplingParams
from support.errors import ConfigError
from support.seeding import isolated_rng

LONG = "beyond which its longrope changes the positions"


@pytest.fixture(scope="module")
def longrope(tmp_path_factory):
    folder = tmp_path_factory.mktemp("longrope") / "model"
    (family,) = [family for family in FAMILIES if str(family) == "phi3 with longrope"]
    build(family, folder)
    return str(folder)


def test_longrope_is_a_policy_within_its_original_context_only(longrope):
    policy = Policy(PolicyParams(longrope))
    tokens = list(range(5, 5 + WINDOW + 1))
    shorter, longer = (plain_logprobs(policy.model, tokens[:3], tokens[3:end]) for end in (WINDOW, WINDOW + 1))
    assert (shorter - longer[:-1]).abs().max() > 0.1, "one more token changes the log-probs of all before it"
    assert policy.context == WINDOW

    for new_tokens in (WINDOW - 9, WINDOW):
        prompts = [[5, 6, 7], [4] * 9]
        with isolated_rng(1):
            if new_tokens + 9 > WINDOW:
                with pytest.raises(ConfigError, match=LONG):
                    EmbeddedEngine().generate(policy, prompts, [{}, {}], 2, SamplingParams(new_tokens))
                continue
            batch = EmbeddedEngine().generate(policy, prompts, [{}, {}], 2, SamplingParams(new_tokens))
        for row in range(4):
            completion = batch.completion_ids[row, : int(batch.lengths[row])].tolist()
            expected = plain_logprobs(policy.model, prompts[row // 2], completion)
            assert (batch.behaviour_logprobs[row, : len(completion)] - expected).abs().max() < 1e-4
            scored = policy.logprobs(batch.prompt_groups(torch.arange(4)))[0][row, : len(completion)]
            assert (scored.detach() - expected).abs().max() < 1e-4


def test_every_way_in_is_checked(longrope):
    policy, words = Policy(PolicyParams(longrope)), "1+2=?" * 4
    with pytest.raises(ConfigError, match=f"prompt with its completion has .* of {WINDOW} tokens, {LONG}"):
        policy.score(["1+2=?", words], ["3", "3"])
    with pytest.raises(ConfigError, match=f"row 7 has .* of {WINDOW} tokens, {LONG}"):
        encode_responses(policy, [{"id": 7, "prompt": words, "response": "3"}], max_length=64)
    with pytest.raises(ConfigError, match=f"prompt with its response has .* of {WINDOW} tokens, {LONG}"):
        Scorer(PolicyParams(longrope)).score([words], ["3"])
    with pytest.raises(ConfigError, match=f"prompt 3 of the val split .* of {WINDOW} tokens, {LONG}"):
        rows = {"val": [{"id": 3, "prompt": words}]}
        check_prompts(rows, context_of(policy.bare.config), 5, lambda row: policy.encode(row["prompt"]))


def test_limits_of_a_model_that_also_sees():
    """They are settings of its text part."""
    config = Gemma3Config(text_config={"sliding_window": 16, "max_position_embeddings": 48})
    assert "sliding_window" in limits(config) and context_of(config) == (48, "")
    config.text_config.use_sliding_window = False
    config.text_config.attn_logit_softcapping = 5.0
    assert limits(config) == ["attn_logit_softcapping"], "a window that is off, and a cap"
