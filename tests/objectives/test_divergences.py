"""Divergences by enumeration over few tokens, and the mixtures of logits that a teacher may be."""

import math

import pytest
import torch

from objectives import Divergence
from objectives.divergences import mixed_logits
from support.errors import ConfigError

S, T = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64), torch.tensor([[0.2, 0.2, 0.6]], dtype=torch.float64)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_values_by_enumeration(beta):
    s, t = S[0].tolist(), T[0].tolist()
    mixture = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    values = {
        "reverse": kl(s, t),
        "forward": kl(t, s),
        "jensen_shannon": beta * kl(t, mixture) + (1 - beta) * kl(s, mixture),
    }
    for kind, value in values.items():
        divergence = Divergence(kind, beta)
        assert float(divergence(S.log() + 3.0, T.log() - 1.0)) == pytest.approx(value, rel=1e-12), (
            "shifts change nothing"
        )
        assert float(divergence(S.log(), S.log())) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["reverse", "forward", "jensen_shannon"])
def test_gradients_are_those_of_finite_differences_and_stay_finite(kind):
    teacher = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    student = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: Divergence(kind)(logits, teacher), student)
    extreme = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    Divergence(kind)(extreme, -extreme.detach()).sum().backward()
    assert extreme.grad.isfinite().all()


def test_forward_at_a_fixed_teacher_has_the_gradient_of_cross_entropy():
    student = S.log().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Divergence("forward")(student, T.log()).sum(), student)
    assert torch.allclose(gradient, S - T, atol=1e-12)


def test_mixtures_interpolate_and_extrapolate():
    """softmax of mixed logits is p_a^lambda p_r^(1 - lambda), normalised."""
    for weight in (-0.5, 0.0, 0.5, 1.0, 2.0):
        expected = T**weight * S ** (1 - weight)
        found = mixed_logits(T.log() + 5.0, S.log(), weight).softmax(-1)
        assert torch.allclose(found, expected / expected.sum(), atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, float("nan")])
def test_a_mixture_of_one_is_refused(beta):
    with pytest.raises(ConfigError, match=r"set model\.divergence\.beta above 0 and below 1"):
        Divergence("jensen_shannon", beta)
