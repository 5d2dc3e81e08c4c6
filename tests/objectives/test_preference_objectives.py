"""Preference objectives: values by hand, properties of the papers, gradients beside finite differences."""

import math

import pytest
import torch

from objectives import DPO, IPO, KTO, ORPO, REDI, ResponseScores, SimPO
from objectives.reference_free import log_odds
from support.errors import ConfigError


def scores(total, tokens, reference=None, prompt=None):
    values = [None if v is None else torch.tensor([v], dtype=torch.float64) for v in (total, tokens, reference)]
    return ResponseScores(*values, *(() if prompt is None else (torch.tensor([v]).double() for v in prompt)))


def sigma(x):
    return 1 / (1 + math.exp(-x))


CHOSEN, REJECTED = scores(-6.0, 3.0, -7.0, (-4.0, 2.0)), scores(-8.0, 2.0, -5.0, (-4.0, 2.0))


def odds(mean):
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (DPO(0.5), -math.log(sigma(0.5 * (1 + 3)))),
        (DPO(0.5, length_normalised=True), -math.log(sigma(0.5 * (1 / 3 + 3 / 2)))),
        (IPO(0.5), (1 / 3 + 3 / 2 - 1) ** 2),
        (SimPO(2.0, 1.0), -math.log(sigma(2 * (-2 + 4) - 1))),
        (ORPO(0.5, prompt_loss=False), 2 - 0.5 * math.log(sigma(odds(-2) - odds(-4)))),
        (ORPO(0.5), 10 / 5 - 0.5 * math.log(sigma(odds(-2) - odds(-4)))),
        (REDI(), 2 - 0.8 * 4),
        (REDI(1.0, gamma=0.5), 2 - 4 * math.exp(-2)),
    ],
)
def test_values_by_hand(loss, value):
    assert float(loss(CHOSEN, REJECTED)) == pytest.approx(value, rel=1e-12)


def test_kto_by_hand():
    both = ResponseScores(
        *(torch.cat([a, b]) for a, b in zip(vars(CHOSEN).values(), vars(REJECTED).values(), strict=True))
    )
    loss = KTO(0.5, 2.0, 3.0)(both, torch.tensor([True, False]), torch.tensor(0.5))
    assert loss.tolist() == pytest.approx([2 * (1 - sigma(0.5 * (1 - 0.5))), 3 * (1 - sigma(0.5 * (0.5 + 3)))])


def test_where_policy_and_reference_are_equal():
    equal = scores(-3.0, 3.0, -3.0), scores(-9.0, 2.0, -9.0)
    assert float(DPO()(*equal)) == float(DPO(7.0, length_normalised=True)(*equal)) == pytest.approx(math.log(2))
    assert float(IPO(0.1)(*equal)) == pytest.approx(25)
    assert float(KTO()(equal[0], torch.tensor([True]), torch.tensor(0.0))) == 0.5


def test_losses_without_a_reference_need_none_and_simpo_orders_by_the_mean():
    one, other = scores(-4.0, 2.0), scores(-6.0, 3.0)
    assert float(SimPO(gamma=0.0)(one, other)) == pytest.approx(math.log(2))
    assert [loss.needs_reference for loss in (DPO(), IPO(), KTO(), SimPO(), ORPO(), REDI())] == [True] * 3 + [False] * 3
    assert ORPO().needs_prompts and not ORPO(prompt_loss=False).needs_prompts and not DPO().needs_prompts


@pytest.mark.parametrize(
    "loss", [DPO(), DPO(length_normalised=True), IPO(), SimPO(), ORPO(), REDI(), REDI(gamma=1.0)], ids=repr
)
def test_gradients_are_those_of_finite_differences(loss):
    tokens, reference = (
        torch.tensor([[3.0, 5.0], [2.0, 7.0]]).double(),
        torch.tensor([[-4.0, -9.0], [-5.0, -8.0]]).double(),
    )
    prompt = torch.tensor([-3.0, -2.0]).double(), torch.tensor([4.0, 3.0]).double()

    def value(totals):
        sides = [ResponseScores(totals[side], tokens[side], reference[side], *prompt) for side in (0, 1)]
        return loss(*sides)

    start = torch.tensor([[-5.0, -7.0], [-3.0, -9.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, start)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_odds_stay_finite(dtype):
    means = torch.tensor([0.0, -1e-8, -1e-3, -0.69, -0.7, -5.0, -90.0], dtype=dtype, requires_grad=True)
    values = log_odds(means)
    (gradient,) = torch.autograd.grad(values.sum(), means)
    assert values.isfinite().all() and gradient.isfinite().all() and (values.diff() <= 0).all()
    exact = [math.log(math.exp(m) / -math.expm1(m)) for m in means[4:6].tolist()]
    assert values[4:6].tolist() == pytest.approx(exact, rel=1e-5)


def test_alpha_below_one_still_raises_a_response_that_both_sides_share():
    """The mean log-prob of a pair's common tokens: SFT raises it, alpha of 1 does not, above 1 lowers it."""
    shared = torch.tensor([-2.0], requires_grad=True)

    def slope(alpha):
        sides = [ResponseScores(shared + own, torch.tensor([1.0])) for own in (-1.0, -2.0)]
        return float(torch.autograd.grad(REDI(alpha)(*sides).sum(), shared)[0])

    assert [slope(alpha) for alpha in (0.0, 0.8, 1.0, 1.2)] == pytest.approx([-1, -0.2, 0, 0.2], abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DPO(0.0),
        lambda: IPO(float("nan")),
        lambda: SimPO(gamma=-1.0),
        lambda: ORPO(-0.1),
        lambda: KTO(undesirable_weight=float("inf")),
        lambda: REDI(-0.1),
        lambda: REDI(gamma=0.0),
    ],
)
def test_options_out_of_range_are_refused(make):
    with pytest.raises(ConfigError, match=r"set model\.loss\.\w+ to a finite number"):
        make()
