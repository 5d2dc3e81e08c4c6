"""KL estimators by enumeration over three tokens; preference losses by hand."""

import math

import pytest
import torch

from objectives.kl import adapted_coefficient, kl_estimate
from objectives.preference_losses import order_accuracy, pairwise_cost_loss, reward_loss, signed_cost_loss

POLICY = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
EXACT = 0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.2 * math.log(1 / 3)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_have_the_exact_expectation(estimator):
    values = kl_estimate(POLICY.log(), REFERENCE.log(), estimator)
    assert float((POLICY * values).sum()) == pytest.approx(EXACT, rel=1e-12)


def test_k3_is_never_negative_and_k2_is_half_a_square():
    assert (kl_estimate(POLICY.log(), REFERENCE.log(), "k3") >= 0).all()
    assert float(kl_estimate(torch.tensor(0.4), torch.tensor(0.1), "k2")) == pytest.approx(0.045)


def test_expected_gradients_k2_gives_the_kl_gradient_and_k1_none():
    theta = POLICY.log().requires_grad_()
    exact = torch.autograd.grad((theta.softmax(0) * (theta.log_softmax(0) - REFERENCE.log())).sum(), theta)[0]

    def expected(estimator):
        return torch.autograd.grad(
            (POLICY * kl_estimate(theta.log_softmax(0), REFERENCE.log(), estimator)).sum(), theta
        )[0]

    assert torch.allclose(expected("k2"), exact, atol=1e-12)
    assert torch.allclose(expected("k1"), torch.zeros(3, dtype=torch.float64), atol=1e-12)


def test_adaptive_coefficient_by_hand():
    assert adapted_coefficient(0.1, 0.2, 0.1, 100, 1000) == pytest.approx(0.102)  # error clipped at +0.2
    assert adapted_coefficient(0.1, 0.09, 0.1, 100, 1000) == pytest.approx(0.099)


def test_preference_losses_by_hand():
    a, b = torch.tensor([2.0]), torch.tensor([1.0])
    bradley_terry = math.log(1 + math.exp(-1.0))
    square = 0.1 * 0.5 * (4.0 + 1.0)
    assert float(reward_loss(a, b, 0.1)) == pytest.approx(bradley_terry + square)
    assert float(pairwise_cost_loss(a, b, 0.1)) == pytest.approx(bradley_terry + square)
    signed = signed_cost_loss(a, b, torch.tensor([True]), torch.tensor([False]), 0.1)
    signs = math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(1.0))
    assert float(signed) == pytest.approx(bradley_terry + square + signs)


def test_a_tie_is_half_in_order():
    higher, lower = torch.tensor([2.0, 1.0, 0.0, -1.0]), torch.tensor([1.0, 2.0, 0.0, -1.0])
    assert order_accuracy(higher, lower).tolist() == [1.0, 0.0, 0.5, 0.5]
    assert (order_accuracy(higher, lower) + order_accuracy(lower, higher)).tolist() == [1.0] * 4
