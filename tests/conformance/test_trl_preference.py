"""Preference losses beside TRL's, computed by its trainers' methods on a stand-in. Needs the extra `bench`.

Random log-probs in float64: values, and gradients of every token's log-prob.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("trl", minversion="1.16")

from trl.experimental.cpo.cpo_trainer import CPOTrainer  # noqa: E402
from trl.experimental.orpo.orpo_trainer import ORPOTrainer  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402
from trl.trainer.kto_trainer import KTOTrainer  # noqa: E402

from objectives import DPO, IPO, KTO, ORPO, Divergence, ResponseScores, SimPO  # noqa: E402

ROWS, PROMPT, TIME = 4, 3, 6  # two pairs: chosen first, as TRL has them
LENGTHS = torch.tensor([6, 2, 4, 5])
WITHIN = torch.arange(TIME) < LENGTHS[:, None]
IDS = torch.zeros(ROWS, PROMPT + TIME, dtype=torch.long)
COMPLETION = torch.cat([torch.zeros(ROWS, PROMPT, dtype=torch.bool), WITHIN], 1)


def random(seed, shape=(ROWS, TIME)):
    return -torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


POLICY, REFERENCE = random(1), random(2)


def same(values, **_):
    return values


def accelerator():
    return SimpleNamespace(
        device=torch.device("cpu"), gather=same, gather_for_metrics=same, unwrap_model=same, num_processes=1
    )


def outputs(logprobs, within):
    """The output of TRL's models: log-probs of every token but the first, 0 where there is no label."""
    masked = torch.where(within, logprobs, 0.0)
    values = torch.cat([torch.zeros(len(masked), PROMPT - 1).double(), masked], 1)
    return SimpleNamespace(
        log_probs=values, entropy=values.detach(), mean_logits=values.detach(), is_top1=values.detach() < 0
    )


def stand_in(**changes):
    """A trainer with the attributes that TRL's methods read; the defaults are TRL's."""
    values = {
        "model": SimpleNamespace(training=True),
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "accelerator": accelerator(),
        "aux_loss_enabled": False,
        "precompute_ref_logps": False,
        "use_weighting": False,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "loss_weights": [1.0],
        "beta": 0.1,
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "_metrics": {"train": defaultdict(list)},
    }
    return SimpleNamespace(**(values | changes))


@pytest.fixture(autouse=True)
def without_models(monkeypatch):
    """The stand-in's models are functions, which have no layers and no checkpointing."""
    from contextlib import nullcontext

    from trl.trainer import dpo_trainer, kto_trainer

    for module in (dpo_trainer, kto_trainer):
        monkeypatch.setattr(module, "is_peft_model", lambda model: False)
        monkeypatch.setattr(module, "disable_gradient_checkpointing", lambda *_: nullcontext())


def sides(leaf, reference=REFERENCE, prompt=None):
    """Our scores of chosen and rejected responses."""
    totals, fixed = torch.where(WITHIN, leaf, 0.0).sum(1), torch.where(WITHIN, reference, 0.0).sum(1)
    parts = zip(totals.chunk(2), LENGTHS.double().chunk(2), fixed.chunk(2), strict=True)
    return [ResponseScores(*part, *(prompt or ())) for part in parts]


def agree(ours, theirs, leaf):
    for value in (ours, theirs):
        assert value.dim() == 0
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-9)
    (found,), (expected,) = (torch.autograd.grad(value, leaf, retain_graph=True) for value in (ours, theirs))
    assert expected.abs().max() > 1e-3 and torch.allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "loss"), [("sigmoid", DPO()), ("sigmoid_norm", DPO(length_normalised=True)), ("ipo", IPO())]
)
def test_losses_of_the_dpo_trainer(name, loss):
    leaf = POLICY.clone().requires_grad_()
    trainer = stand_in(loss_types=[name], ref_model=lambda **_: outputs(REFERENCE, WITHIN))
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "completion_mask": COMPLETION.long()}
    theirs = DPOTrainer._compute_loss(trainer, lambda **_: outputs(leaf, WITHIN), inputs, False)
    agree(loss(*sides(leaf)).mean(), theirs, leaf)


@pytest.mark.parametrize("shift", [0.0, -5.0])  # the estimated KL is above 0, or cut there
def test_kto(shift):
    leaf, mismatched = POLICY.clone().requires_grad_(), random(3) + shift
    reference = random(4) - 1
    rolled = WITHIN.roll(1, 0)  # the response of the prompt before
    label = torch.tensor([True, False, False, True])

    def model(kl, own):
        calls = iter([outputs(kl, rolled), outputs(own, WITHIN)])
        return lambda **_: next(calls)

    trainer = stand_in(
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        ref_model=model(reference, REFERENCE),
    )
    trainer._compute_kl_logps = lambda *arguments: KTOTrainer._compute_kl_logps(trainer, *arguments)
    shifted = COMPLETION.roll(1, 0).long()
    inputs = {
        "input_ids": IDS, "attention_mask": torch.ones_like(IDS), "completion_mask": COMPLETION.long(), "label": label,
        "KL_input_ids": IDS, "KL_attention_mask": torch.ones_like(IDS), "KL_completion_mask": shifted,
    }  # fmt: skip
    theirs = KTOTrainer._compute_loss(trainer, model(mismatched, leaf), inputs, False)
    baseline = torch.where(rolled, mismatched - reference, 0.0).sum(1).mean().clamp(min=0)
    assert (baseline > 0) == (shift == 0)
    totals, fixed = (torch.where(WITHIN, values, 0.0).sum(1) for values in (leaf, REFERENCE))
    ours = KTO(0.1, 1.5, 0.5)(ResponseScores(totals, LENGTHS.double(), fixed), label, baseline).mean()
    agree(ours, theirs, leaf)


def test_simpo_is_the_cpo_trainer_without_its_cloning_term():
    leaf = POLICY.clone().requires_grad_()
    trainer = stand_in(loss_type="simpo", simpo_gamma=1.375, beta=2.5, alpha=0.0, label_smoothing=0.0)
    chosen, rejected = (side.mean for side in sides(leaf))
    theirs = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0].mean()
    agree(SimPO()(*sides(leaf)).mean(), theirs, leaf)


def test_orpo_of_one_pair():
    """TRL pools the tokens of a device's batch in the first term; with one pair both are its mean."""
    leaf, prompt = POLICY.clone().requires_grad_(), random(5, (1, PROMPT - 1))
    chosen, rejected = (
        ResponseScores(*(v[:1] for v in (s.total, s.tokens, s.reference)), prompt.sum(1), torch.tensor([2.0]))
        for s in sides(leaf)
    )
    pooled = -(prompt.sum() + chosen.total.sum()) / (2 + LENGTHS[0])
    trainer = stand_in()
    trainer.concatenated_forward = lambda *_: (chosen.mean, rejected.mean, IDS.double(), IDS.double(), pooled)
    trainer.odds_ratio_loss = lambda *means: ORPOTrainer.odds_ratio_loss(trainer, *means)
    theirs = ORPOTrainer.get_batch_loss_metrics(trainer, None, None)[0]
    agree(ORPO()(chosen, rejected).mean(), theirs, leaf)


@pytest.mark.parametrize(("beta", "divergence"), [(0.0, "forward"), (1.0, "reverse"), (0.5, 0.5), (0.1, 0.1)])
def test_the_divergences_of_the_gkd_trainer(beta, divergence):
    """TRL's ends of beta are the two KL divergences; in between its mixture is ours."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher = (random(seed, (2, 3, 5)) for seed in (6, 7))
    leaf = student.clone().requires_grad_()
    theirs = GKDTrainer.generalized_jsd_loss(leaf, teacher, beta=beta, reduction="sum")
    named = isinstance(divergence, str)
    part = Divergence(divergence) if named else Divergence("jensen_shannon", divergence)
    agree(part(leaf, teacher).sum(), theirs, leaf)
