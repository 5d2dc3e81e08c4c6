"""Updates compute what the rollout computed: dropout, other noise, adapters' dropout, checkpointing."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assets.make_untrained import reasoner_tokenizer
from policies import LoRA, Policy, PolicyParams, PromptGroups, Scorer
from policies.modes import evaluation_mode
from rollouts import EmbeddedEngine, SamplingParams, TransformersEngine


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def noisy(request, tmp_path_factory):
    """Folder of a model with dropout: in modules of their own, or in its attention's code."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = reasoner_tokenizer()
    torch.manual_seed(0)
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    if request.param == "gpt2":
        config = GPT2Config(**ends, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.5, resid_pdrop=0.5)
        model = GPT2LMHeadModel(config)
    else:
        config = LlamaConfig(
            **ends, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            initializer_range=0.3, attention_dropout=0.5,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def groups(policy):
    return PromptGroups.of([[5, 6, 7], [9]], [[11, 12, 13, 14], [15, 16]], policy.pad_token_id, policy.device)


def scores(policy):
    with torch.no_grad():
        return policy.logprobs(groups(policy))[0][groups(policy).completion_mask]


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["all weights", "adapters"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_no_dropout_acts_in_updates(noisy, lora, checkpointing):
    policy = Policy(PolicyParams(noisy, lora=lora, gradient_checkpointing=checkpointing), with_reference=True)
    for change in (lambda: None, lambda: policy.train(), lambda: policy.eval().train()):
        change()
        first = scores(policy)
        assert torch.equal(first, scores(policy))
        with evaluation_mode(policy.model):
            torch.testing.assert_close(first, scores(policy))
        torch.testing.assert_close(first, policy.reference_logprobs(groups(policy))[groups(policy).completion_mask])
    for engine in (EmbeddedEngine(), TransformersEngine()):
        engine.generate(policy, [[5, 6]], [{}], 2, SamplingParams(4))
        assert torch.equal(first, scores(policy)), "an engine leaves the mode as it was"


def test_dropout_that_is_asked_for_acts_and_only_in_updates(noisy):
    policy = Policy(PolicyParams(noisy, dropout=True))
    assert not torch.equal(scores(policy), scores(policy))
    policy.eval()
    assert torch.equal(scores(policy), scores(policy))
    policy.train()
    adapters = Policy(PolicyParams(noisy, lora=LoRA(r=2, dropout=0.5)))
    with torch.no_grad():
        for name, parameter in adapters.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    TransformersEngine().generate(adapters, [[5, 6]], [{}], 2, SamplingParams(2))
    assert not torch.equal(scores(adapters), scores(adapters))
    adapters.eval()
    assert torch.equal(scores(adapters), scores(adapters))


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["all weights", "adapters"])
def test_checkpointed_gradients_are_those_of_plain_ones(noisy, lora):
    """And activations are indeed computed again: the layers' inner forwards run twice."""
    found, calls = [], []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        policy = Policy(PolicyParams(noisy, lora=lora, gradient_checkpointing=checkpointing))
        inner = next(module for name, module in policy.model.named_modules() if name.endswith(("attn", "self_attn")))
        policy.check([[5, 6, 7]])
        count = []
        inner.register_forward_hook(lambda *_, count=count: count.append(1))
        policy.logprobs(groups(policy))[0].sum().backward()
        calls.append(len(count))
        found.append({name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None})
    assert calls == [1, 2]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 3
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_reward_models_dropout_is_asked_for_too(noisy):
    for dropout in (False, True):
        scorer = Scorer(PolicyParams(noisy, dropout=dropout))
        torch.nn.init.normal_(scorer.head.weight)
        ids, mask = scorer.encode(["1+2=?"], ["3"])
        with torch.no_grad():
            assert torch.equal(scorer(ids, mask), scorer(ids, mask)) != dropout
        assert torch.equal(scorer.score(["1+2=?"], ["3"]), scorer.score(["1+2=?"], ["3"]))
