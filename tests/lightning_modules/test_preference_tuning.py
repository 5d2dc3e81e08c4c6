"""Preference tuning: log-probs beside plain forwards, references, KTO's baseline, ORPO's prompts, refusals."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

from assets.make_untrained import reasoner_tokenizer, save_random
from datamodules import LabelledResponses, PairSource, PreferencePairs
from lightning_modules import CostModel, Preference, RewardModel
from lightning_modules.core import reference_sums
from objectives import DPO, KTO, ORPO, REDI, SimPO
from policies import LoRA, Policy, PolicyParams, fused
from support.errors import ConfigError
from tests.ecosystem.test_trl_formats import jsonl
from tests.helpers import adamw, fit, quiet_trainer, sgd, weights

PAIRS = [
    {"id": str(n), "prompt": f"{n}+{2 * n + 3}=?", "chosen": f"{n}, {3 * n + 3}.", "rejected": f"It is {n * n}"}
    for n in range(1, 25)
]


@pytest.fixture
def pairs(tmp_path):
    return PreferencePairs(PairSource(jsonl(tmp_path / "pairs.jsonl", *PAIRS), format="trl"), 4, 0.2, seed=0)


@pytest.fixture
def responses(tmp_path):
    return LabelledResponses(PairSource(jsonl(tmp_path / "one.jsonl", *PAIRS), format="trl"), "better", 4, 0.2, seed=0)


def made(model, loss, lora=None, **options):
    module = Preference(PolicyParams(model, lora=lora), loss=loss, **({"optimizer": sgd(0.3)} | options))
    module.configure_model()
    return module


def rows(data, count=4):
    data.setup("fit")
    return data.train_data[:count]


def sums(policy, prompts, texts, **options):
    return torch.stack([one.sum() for one in policy.score(prompts, texts, **options)])


def test_scores_are_those_of_plain_forwards_and_a_prompt_is_computed_once(reasoner, pairs):
    module, batch = made(reasoner, SimPO()), rows(pairs)
    groups = module.groups(module.policy, batch)
    chosen, rejected = module._scores(batch, groups)
    prompts, padded = [row["prompt"] for row in batch], Policy(PolicyParams(reasoner, packing=False))
    for scores, name in ((chosen, "response_0"), (rejected, "response_1")):
        texts = [row[name] for row in batch]
        assert torch.allclose(scores.total, sums(padded, prompts, texts), atol=1e-4)
        assert scores.tokens.tolist() == [len(module.policy.tokenizer(text)["input_ids"]) + 1 for text in texts]
    lengths = [len(module.policy.encode(prompt)) for prompt in prompts]
    assert module.policy.scoring == "packed"
    assert groups.packed.tokens == sum(lengths) + int((groups.completion_mask.sum(1) - 1).sum())


def test_the_better_response_is_preferred_wherever_it_stands_and_may_be_cut_off(reasoner, pairs):
    module, (row,) = made(reasoner, SimPO()), rows(pairs, 1)
    swapped = row | {"response_0": row["response_1"], "response_1": row["response_0"], "better": 1}
    one, other = (module.evaluate_rows([each])[0] for each in (row, swapped))
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    cut = module.groups(module.policy, [row | {"ended_1": False}])
    assert (cut.completion_mask.sum(1) - module.groups(module.policy, [row]).completion_mask.sum(1)).tolist() == [0, -1]
    (out,) = module.predict_step([swapped], 0)
    assert out["logprob_1"] == pytest.approx(float(module._scores([row], module.groups(module.policy, [row]))[0].total))


@pytest.mark.parametrize("options", [{}, {"lora": LoRA(r=4, alpha=8)}, {"reference": "precomputed"}], ids=str)
def test_dpo_begins_at_log_2_and_every_reference_stays_at_the_start(reasoner, pairs, options):
    module = made(reasoner, DPO(), **options)
    trainer = fit(module, 1, data=pairs, seed=0)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(math.log(2), abs=1e-5)
    batch, start = rows(pairs), Policy(PolicyParams(reasoner))
    prompts = [row["prompt"] for row in batch]
    with torch.no_grad():
        loss = float(module.evaluate_rows(batch)[0])
    ratios = [
        sums(module.policy, prompts, texts) - sums(start, prompts, texts)
        for texts in ([row["response_0"] for row in batch], [row["response_1"] for row in batch])
    ]
    expected = float(-logsigmoid(0.1 * (ratios[0] - ratios[1])).mean())
    assert loss == pytest.approx(expected, abs=1e-5) and loss < math.log(2) - 1e-3


def test_precomputed_log_probs_train_as_a_copy_does_and_are_kept_by_what_decides_them(
    reasoner, assistant, pairs, monkeypatch
):
    forwards = []
    plain = Policy.logprobs
    monkeypatch.setattr(
        Policy, "logprobs", lambda self, *options, **more: forwards.append(self) or plain(self, *options, **more)
    )

    def trained(reference, model=reasoner):
        module = made(model, DPO(), reference=reference)
        fit(module, 3, data=pairs, seed=0)
        others = [policy for policy in forwards if policy is not module.policy]
        forwards.clear()
        return weights(module), len(others)

    copied, _ = trained("model")
    first, computed = trained("precomputed")
    again, from_cache = trained("precomputed")
    assert torch.allclose(copied, first, atol=1e-6) and torch.equal(first, again)
    assert computed > 0 and from_cache == 0
    assert trained("precomputed", assistant)[1] == computed, "another model's log-probs"
    pairs.train_data[0] = pairs.train_data[0] | {"response_1": "It is 7"}
    assert trained("precomputed")[1] == computed, "other data"
    for file in reference_sums.cache_folder("reference_sums").iterdir():
        file.write_bytes(b"torn")
    assert trained("precomputed")[1] == computed, "a damaged file"


def test_kto_compares_with_the_response_of_the_prompt_before(reasoner, responses):
    module = made(reasoner, KTO(beta=0.5))
    fit(module, 2, data=responses, seed=0)
    batch = rows(responses)
    loss, logged = module.evaluate_rows(batch)
    start, prompts = Policy(PolicyParams(reasoner)), [row["prompt"] for row in batch]
    texts = [row["response"] for row in batch]

    def ratios(order):
        return sums(module.policy, prompts, order) - sums(start, prompts, order)

    baseline = float(ratios(texts[-1:] + texts[:-1]).mean().clamp(min=0))
    signs = torch.tensor([1.0 if row["desirable"] else -1.0 for row in batch])
    expected = 1 - (0.5 * signs * (ratios(texts) - baseline)).sigmoid()
    assert float(logged["kl"][0]) == pytest.approx(baseline, abs=1e-4)
    assert float(loss) == pytest.approx(float(expected.mean()), abs=1e-4)
    assert {row["desirable"] for row in responses.train_data} == {True, False}


def test_orpo_also_learns_the_prompt(reasoner, pairs):
    module, batch = made(reasoner, ORPO(beta=0.0)), rows(pairs)
    loss, expected = module.evaluate_rows(batch)[0], []
    for row in batch:
        prompt = module.policy.encode(row["prompt"])
        response = module.policy.tokenizer(row["response_0"])["input_ids"] + [module.policy.tokenizer.eos_token_id]
        ids = torch.tensor([prompt + response])
        expected.append(module.policy.model(input_ids=ids, labels=ids).loss)
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-4)
    gradients = [
        torch.autograd.grad(value, list(module.policy.model.parameters())) for value in (loss, sum(expected) / 4)
    ]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*gradients, strict=True))


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            self.entries = max(self.entries, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("loss", [DPO(), ORPO(), REDI()], ids=lambda loss: type(loss).__name__)
def test_memory_is_flat_in_the_vocabulary(tmp_path, pairs, monkeypatch, loss):
    """Apart from the vocabulary's own matrix no tensor grows with it, forward or backward."""
    monkeypatch.setattr(fused, "TILE", 4096)
    batch, largest = rows(pairs), {}
    for vocabulary in (2_000, 8_000):
        torch.manual_seed(0)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        save_random(tmp_path / str(vocabulary), reasoner_tokenizer(), max_position_embeddings=64, **sizes)
        module = made(str(tmp_path / str(vocabulary)), loss)
        for model in filter(None, (module.policy.bare, module.policy.reference)):
            model.resize_token_embeddings(vocabulary, mean_resizing=False)
        module.groups(module.policy, batch)
        module.evaluate_rows(batch)  # chooses the way of scoring
        with Largest() as seen:
            module.evaluate_rows(batch)[0].backward()
        largest[vocabulary] = seen.entries
        tokens = int(module.groups(module.policy, batch).completion_mask.sum())
        assert seen.entries < tokens * vocabulary / 4
    matrix = 8
    assert largest[8_000] <= max(8_000 * matrix, largest[2_000])


def test_mistakes_are_named_before_training(reasoner, pairs, responses, tmp_path):
    cases = [
        (made(reasoner, DPO()), responses, r"DPO needs the column 'response_0'.*datamodules\.PreferencePairs"),
        (made(reasoner, KTO()), pairs, r"KTO needs the column 'response'.*datamodules\.LabelledResponses"),
        (made(reasoner, DPO(), max_length=9), pairs, r"tokens, more than max_length=9; drop or shorten it"),
    ]
    for module, data, message in cases:
        before = weights(module)
        with pytest.raises(ConfigError, match=message):
            fit(module, 1, data=data)
        assert torch.equal(weights(module), before)
    with pytest.raises(ConfigError, match="reference is precomputed, but KTO also compares"):
        made(reasoner, KTO(), reference="precomputed")
    with pytest.raises(ConfigError, match="loss is the class DPO, but it must be an instance"):
        made(reasoner, DPO)
    responses.batch_size = 1
    with pytest.raises(ConfigError, match="KTO compares every prompt with another prompt's response"):
        fit(made(reasoner, KTO()), 1, data=responses)


def test_a_precomputed_reference_needs_all_rows_before(reasoner, pairs):
    module = made(reasoner, DPO(), reference="precomputed")
    with pytest.raises(ConfigError, match="the data do not say before training which rows there are"):
        quiet_trainer(1).fit(module, [rows(pairs)])
    fit(module, 1, data=pairs)
    with pytest.raises(ConfigError, match="a batch holds a row that the data module did not have"):
        module.evaluate_rows([rows(pairs)[0] | {"prompt": "1+1=?"}])


def test_a_loss_with_a_reference_does_not_resume_from_a_run_without(reasoner, pairs, tmp_path):
    trainer = fit(made(reasoner, SimPO()), 1, data=pairs, seed=0)
    trainer.save_checkpoint(tmp_path / "made.ckpt")
    with pytest.raises(ConfigError, match=r"had another model\.loss or model\.reference, and this run needs one"):
        fit(made(reasoner, DPO()), 2, data=pairs, seed=0, ckpt_path=tmp_path / "made.ckpt")


@pytest.mark.parametrize("loss", [DPO(), KTO()], ids=lambda loss: type(loss).__name__)
def test_a_resumed_run_ends_with_the_same_bits(reasoner, pairs, responses, tmp_path, loss):
    data = pairs if isinstance(loss, DPO) else responses
    reference = {"reference": "precomputed"} if isinstance(loss, DPO) else {}

    def run(steps, ckpt_path=None):
        module = made(reasoner, loss, optimizer=adamw(1e-2), **reference)
        return module, fit(module, steps, data=data, seed=0, ckpt_path=ckpt_path)

    whole, half = run(6), run(3)
    half[1].save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(6, tmp_path / "half.ckpt")
    assert torch.equal(weights(resumed), weights(whole[0])) and not torch.equal(weights(half[0]), weights(resumed))


@pytest.mark.parametrize("kind", [RewardModel, CostModel])
def test_an_untrained_scorer_has_half_of_the_pairs_in_order(assistant, kind):
    """Its head is zero, so all scores are equal."""
    module = kind(PolicyParams(assistant))
    module.configure_model()
    labels = {"better": 0, "safer": 1, "unsafe_0": True, "unsafe_1": False}
    pairs = [{"id": str(i), "prompt": "?", "response_0": "yes", "response_1": "no no", **labels} for i in range(3)]
    assert float(module.evaluate_pairs(pairs)[1]["accuracy"]) == 0.5
