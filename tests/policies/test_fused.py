"""The fused log-probs against the plain formula in float64, values and gradients, whatever the tiling."""

import pytest
import torch

from policies import fused
from policies.fused import fused_logprobs


@pytest.mark.parametrize("tile", [2**22, 500 * 7 - 1, 64 * 7, 150 * 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_log_softmax(monkeypatch, tile, temperature):
    monkeypatch.setattr(fused, "TILE", tile)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 12), 3 * torch.randn(500, 12)
    targets, upstream = torch.tensor([0, 499, 63, 64, 250, 149, 150]), torch.randn(7)

    def run(function, dtype):
        inputs = [x.to(dtype).clone().requires_grad_() for x in (hidden, weight)]
        logprobs, entropies = function(*inputs)
        (logprobs * upstream).sum().backward()
        return [logprobs, entropies, inputs[0].grad, inputs[1].grad]

    def plain(hidden, weight):
        log = (hidden @ weight.T / temperature).log_softmax(-1)
        return log.gather(1, targets[:, None])[:, 0], -(log.exp() * log).sum(1)

    ours = run(lambda h, w: fused_logprobs(h, w, targets, temperature), torch.float32)
    for found, expected in zip(ours, run(plain, torch.float64), strict=True):
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=2e-5)


def test_gradients_agree_with_finite_differences(monkeypatch):
    monkeypatch.setattr(fused, "TILE", 64 * 3)
    torch.manual_seed(1)
    hidden, weight, upstream = (
        torch.randn(3, 4),
        torch.randn(150, 4, requires_grad=True),
        torch.tensor([1.0, -2.0, 0.5]),
    )
    targets = torch.tensor([3, 70, 149])

    def value(h):
        return float((fused_logprobs(h, weight.detach(), targets)[0].double() * upstream).sum())

    given = hidden.clone().requires_grad_()
    (fused_logprobs(given, weight, targets)[0] * upstream).sum().backward()
    for place in [(0, 0), (1, 2), (2, 3)]:
        step = torch.zeros_like(hidden)
        step[place] = 1e-2
        assert (value(hidden + step) - value(hidden - step)) / 2e-2 == pytest.approx(float(given.grad[place]), abs=2e-3)


@pytest.mark.parametrize("tile", [2**22, 64 * 7, 150 * 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_entropys_gradient_is_that_of_a_dense_computation(monkeypatch, tile, temperature):
    monkeypatch.setattr(fused, "TILE", tile)
    torch.manual_seed(2)
    hidden, weight = torch.randn(7, 12), 3 * torch.randn(500, 12)
    targets, upstream = torch.tensor([0, 499, 63, 64, 250, 149, 150]), torch.randn(2, 7)

    def run(function, dtype):
        inputs = [x.to(dtype).clone().requires_grad_() for x in (hidden, weight)]
        logprobs, entropies = function(*inputs)
        (logprobs * upstream[0] + entropies * upstream[1]).sum().backward()
        return [x.grad for x in inputs]

    def plain(hidden, weight):
        log = (hidden @ weight.T / temperature).log_softmax(-1)
        return log.gather(1, targets[:, None])[:, 0], -(log.exp() * log).sum(1)

    ours = run(lambda h, w: fused_logprobs(h, w, targets, temperature, entropy_gradient=True), torch.float32)
    for found, expected in zip(ours, run(plain, torch.float64), strict=True):
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=3e-5)
    unasked = fused_logprobs(hidden.requires_grad_(), weight, targets)[1]
    assert not unasked.requires_grad


def test_a_frozen_matrix_gets_no_gradient():
    hidden = torch.randn(2, 4, requires_grad=True)
    fused_logprobs(hidden, torch.randn(9, 4), torch.tensor([1, 2]))[0].sum().backward()
    assert hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("tile", [2**22, 64 * 7])
def test_under_autocast_only_the_matrix_product_is_rounded(monkeypatch, tile):
    monkeypatch.setattr(fused, "TILE", tile)
    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(7, 12), torch.randn(500, 12), torch.randint(500, (7,))
    log = (hidden.bfloat16() @ weight.bfloat16().T).double().log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, entropies = fused_logprobs(hidden, weight, targets)
    assert torch.allclose(logprobs.double(), log.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=2e-5)
    assert torch.allclose(entropies.double(), -(log.exp() * log).sum(1), rtol=1e-5, atol=2e-5)
