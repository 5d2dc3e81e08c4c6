"""The bootstrap interval over problems: coverage on simulated evaluations, and what it must not depend on."""

import numpy as np
import pytest
import torch

from objectives import bootstrap
from objectives.bootstrap import bootstrap_interval
from objectives.pass_at_k import pass_rate
from support.errors import ConfigError


@pytest.mark.parametrize(("k", "a", "b"), [(1, 1.0, 1.0), (4, 0.5, 2.0)])
def test_the_true_pass_at_k_lies_in_about_19_of_20_intervals(k, a, b):
    """Problems whose chance of a right sample is Beta(a, b); the true pass@k is 1 - E[(1 - p)^k]."""
    rng = np.random.default_rng(5)
    truth = 1 - np.prod([(b + i) / (a + b + i) for i in range(k)])
    repetitions, hits = 600, 0
    for repetition in range(repetitions):
        right = torch.tensor(rng.binomial(8, rng.beta(a, b, size=150)), dtype=torch.float64)
        values = pass_rate(torch.full_like(right, 8), right, k).numpy()
        low, high = bootstrap_interval(values, resamples=800, seed=repetition)
        hits += low <= truth <= high
    assert 0.92 <= hits / repetitions <= 0.975


def test_order_and_chunks_change_nothing_and_the_seed_does(monkeypatch):
    values = np.random.default_rng(1).random(60).round(2)
    first = bootstrap_interval(values)
    assert first == bootstrap_interval(values[::-1]) and first != bootstrap_interval(values, seed=1)
    assert first[0] < values.mean() < first[1]
    monkeypatch.setattr(bootstrap, "CHUNK", 500)
    assert bootstrap_interval(values) == pytest.approx(first, abs=1e-12)


def test_the_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(2).random(400)
    low, high = bootstrap_interval(values, resamples=20_000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.03)


def test_edges():
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    with pytest.raises(ConfigError, match="got 0 problems"):
        bootstrap_interval(np.array([]))
