"""Values of tokens: packed, padded and by length against one plain forward per row; both bodies; what is saved."""

import pytest
import torch

from policies import LoRA, Policy, PolicyParams, PromptGroups, Scorer, ValueModel
from policies.value_heads import add_value_heads, logprobs_and_values, shared_values


def rows(policy):
    prompts = [policy.encode("12+34=?"), policy.encode("1+2=?"), policy.encode("7+8+9=?")]
    completions = [prompts[0][:5], prompts[1][:2], prompts[2][:3], prompts[0][1:7], prompts[1][:1]]
    return PromptGroups.of(prompts, completions, policy.pad_token_id, policy.device, owner=[0, 0, 1, 2, 2])


def plain_values(backbone, head, groups):
    """The head on the state before each token, by one forward per row without padding."""
    result = []
    for row, owner in enumerate(groups.owner.tolist()):
        prompt = groups.prompt_ids[owner][groups.prompt_mask[owner]]
        ids = torch.cat([prompt, groups.completion_ids[row][groups.completion_mask[row]]])[None]
        states = backbone(input_ids=ids, use_cache=False).last_hidden_state[0]
        result.append(states[len(prompt) - 1 : -1] @ head.weight.T + head.bias)
    return torch.cat(result)


def randomise(head):
    torch.manual_seed(1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("way", ["packed", "padded", "by_length"])
def test_heads_on_the_policys_body_read_the_state_before_each_token(reasoner, way):
    policy = Policy(PolicyParams(reasoner, packing=way == "packed"))
    add_value_heads(policy, 2)
    groups = rows(policy)
    policy.check(groups)
    policy.scoring = way
    assert (shared_values(policy, groups) == 0).all(), "a new critic says zero"
    randomise(policy.value_head)
    logprobs, entropies, values = logprobs_and_values(policy, groups)
    expected = plain_values(policy.bare.get_decoder(), policy.value_head, groups)
    assert torch.allclose(values[groups.completion_mask], expected, atol=1e-5)
    assert torch.allclose(shared_values(policy, groups)[groups.completion_mask], expected, atol=1e-5)
    for ours, alone in zip((logprobs, entropies), policy.logprobs(groups), strict=True):
        assert torch.equal(ours[groups.completion_mask], alone[groups.completion_mask])


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)])
def test_a_critic_of_its_own_reads_the_state_before_each_token(reasoner, packing, lora):
    critic = ValueModel(PolicyParams(reasoner, packing=packing, lora=lora))
    groups = rows(Policy(PolicyParams(reasoner)))
    assert (critic(groups) == 0).all()
    assert critic.way == ("packed" if packing else "by_length")
    randomise(critic.head)
    values = critic(groups)[..., 0][groups.completion_mask]
    assert torch.allclose(values, plain_values(critic.backbone, critic.head, groups)[:, 0], atol=1e-5)
    values.sum().backward()
    assert all(p.grad is not None for p in critic.parameters() if p.requires_grad)
    assert all(
        ("lora_" in name or "head" in name) or lora is None for name, p in critic.named_parameters() if p.requires_grad
    )


def test_a_critic_starts_at_the_scores_of_a_reward_model(reasoner, tmp_path):
    """The score of a response is the value of the state after its last token."""
    scorer = Scorer(PolicyParams(reasoner))
    randomise(scorer.head)
    scorer.save(tmp_path / "scorer", {})
    critic, policy = ValueModel(PolicyParams(str(tmp_path / "scorer"))), Policy(PolicyParams(reasoner))
    ids, mask = scorer.encode(["1+2=?"], ["3"])
    prompt = policy.encode("1+2=?")
    completion = ids[0][mask[0]].tolist()[len(prompt) :]
    groups = PromptGroups.of([prompt], [[*completion, 5]], policy.pad_token_id, policy.device)
    assert float(critic(groups)[0, len(completion), 0]) == pytest.approx(float(scorer(ids, mask)), abs=1e-5)


def test_a_model_that_cannot_be_packed_is_computed_by_length(reasoner, monkeypatch):
    from policies import value_model

    def broken(body, groups):
        raise ValueError("no packed attention")

    critic, groups = ValueModel(PolicyParams(reasoner)), rows(Policy(PolicyParams(reasoner)))
    monkeypatch.setattr(value_model, "packed_states", broken)
    randomise(critic.head)
    with pytest.warns(UserWarning, match="packed passes of the critic are not possible .ValueError: no packed"):
        values = critic(groups)
    expected = plain_values(critic.backbone, critic.head, groups)
    assert torch.allclose(values[groups.completion_mask], expected, atol=1e-5) and critic.way == "by_length"


def test_an_exported_policy_does_not_hold_its_critic(reasoner, tmp_path):
    policy = Policy(PolicyParams(reasoner))
    names = {name for name, _ in policy.weights()}
    add_value_heads(policy, 1)
    policy.save(tmp_path)
    assert {name for name, _ in Policy(PolicyParams(str(tmp_path))).weights()} == names
