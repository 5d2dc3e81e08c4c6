"""Key tokens, against scipy's exact test, sums in plain floats, and groups whose keys are known."""

import math
from collections import Counter
from fractions import Fraction
from itertools import product

import pytest
import torch
from scipy.stats import fisher_exact

from objectives import KTAE, GroupNorm, LeaveOneOut, RunningMean
from objectives.ktae import fisher_p, information_gain
from support.errors import ConfigError
from tests.helpers import run_config


def tables(right, wrong):
    pairs = list(product(range(right + 1), range(wrong + 1)))
    return (torch.tensor([float(pair[i]) for pair in pairs], dtype=torch.float64) for i in (0, 1))


@pytest.mark.parametrize(("right", "wrong"), [(1, 1), (1, 7), (4, 4), (5, 3), (9, 7), (16, 48)])
def test_p_values_are_scipys(right, wrong):
    a, b = tables(right, wrong)
    for found, x, y in zip(fisher_p(a, b, right, wrong).tolist(), a.tolist(), b.tolist(), strict=True):
        assert found == pytest.approx(fisher_exact([[x, y], [right - x, wrong - y]]).pvalue, abs=1e-8)


@pytest.mark.parametrize(("right", "wrong"), [(4, 4), (5, 3), (1, 7)])
def test_the_gain_is_the_mutual_information_of_the_table(right, wrong):
    """sum p(x, y) log2 p(x, y) / (p(x) p(y)), another way to the same number."""
    a, b = tables(right, wrong)
    n = right + wrong
    for found, x, y in zip(information_gain(a, b, right, wrong).tolist(), a.tolist(), b.tolist(), strict=True):
        cells = {(1, 1): x, (1, 0): y, (0, 1): right - x, (0, 0): wrong - y}
        rows, columns = {1: x + y, 0: n - x - y}, {1: right, 0: wrong}
        expected = sum(v / n * math.log2(v * n / (rows[i] * columns[j])) for (i, j), v in cells.items() if v)
        assert found == pytest.approx(expected, abs=1e-9)


def padded(rows):
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return tokens, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def by_hand(token, rows, right, weights=(1.0, 1.0), top=1.0, k1=2.0, b0=0.5):
    """The key of a token, from the specification, in plain floats."""
    good, bad = (
        [r for r, ok in zip(rows, right, strict=True) if ok],
        [r for r, ok in zip(rows, right, strict=True) if not ok],
    )
    a, b = sum(token in r for r in good), sum(token in r for r in bad)
    c, d = len(good) - a, len(bad) - b
    n = len(rows)

    def chance(x):  # of a table with these margins
        return Fraction(math.comb(len(good), x) * math.comb(len(bad), a + b - x), math.comb(n, a + b))

    possible = [x for x in range(len(good) + 1) if 0 <= a + b - x <= len(bad)]
    p = sum(chance(x) for x in possible if chance(x) <= chance(a))
    strength = weights[0] * (0.0 if p == 1 else math.exp(-2 * float(p)))

    def entropy(*parts):
        return -sum(v / sum(parts) * math.log2(v / sum(parts)) for v in parts if v)

    gain = entropy(len(good), len(bad)) - sum((u + v) / n * entropy(u, v) for u, v in ((a, b), (c, d)) if u + v)
    strength += weights[1] * gain
    totals = sum(map(len, good)), sum(map(len, bad))

    def frequency(side, total):
        f = Counter(t for r in side for t in r)[token] / total
        return f * (k1 + 1) / (f + k1 * (1 - b0 + b0 * total / (sum(totals) / 2)))

    tf = frequency(good, totals[0]), frequency(bad, totals[1])
    x = math.asin(math.sqrt(a / (a + c))) - math.asin(math.sqrt(b / (b + d)))
    x += tf[0] / (tf[1] + 1e-5) - tf[1] / (tf[0] + 1e-5)
    s = strength * x / sum(weights)
    return top * math.tanh(s / 2)


ROWS = [[5, 6, 7, 5], [6, 8, 5], [9, 6], [8, 6, 6, 7, 5], [9, 8, 6], [6, 7, 9, 9, 9]]
RIGHT = [True, True, False, True, False, False]


@pytest.mark.parametrize("options", [{}, {"fisher": 1.0, "gain": 2.0}, {"top": 0.3, "k1": 1.2, "b": 0.75}])
def test_keys_are_those_of_the_formulas(options):
    tokens, mask = padded(ROWS)
    keys = KTAE(**options).keys(torch.tensor([float(ok) for ok in RIGHT]), tokens, mask)
    weights = (options.get("fisher", 1.0), options.get("gain", 1.0))
    for row, found in zip(ROWS, keys.tolist(), strict=True):
        for token, value in zip(row, found, strict=False):
            expected = by_hand(
                token, ROWS, RIGHT, weights, options.get("top", 1.0), options.get("k1", 2.0), options.get("b", 0.5)
            )
            assert value == pytest.approx(expected, abs=1e-9), token
        assert not any(found[len(row) :])


def test_what_the_paper_promises_of_keys():
    tokens, mask = padded(ROWS)
    rewards = torch.tensor([float(ok) for ok in RIGHT])
    keys = KTAE().keys(rewards, tokens, mask)
    assert (keys[tokens == 5] > 0.5).all(), "only right completions hold 5"
    assert (keys[tokens == 9] < -0.5).all(), "only wrong ones hold 9"
    assert (keys[(tokens == 6) & mask] == 0).all(), "every completion holds 6"
    ended = KTAE()
    ended.end_tokens = [5]
    assert (ended.keys(rewards, tokens, mask)[tokens == 5] == 0).all()
    assert KTAE(clamp=0.5).keys(rewards, tokens, mask)[0, 0] < 0.5
    assert (
        KTAE().keys(torch.ones(6), tokens, mask).abs().sum()
        == KTAE().keys(torch.zeros(6), tokens, mask).abs().sum()
        == 0
    )


def test_groups_do_not_mix_and_keys_are_added_to_the_base():
    tokens, mask = padded(ROWS + ROWS)
    rewards = torch.tensor([float(ok) for ok in RIGHT] + [1.0] * 6)
    groups = torch.arange(2).repeat_interleave(6)
    for base in (GroupNorm(eps=1e-6), LeaveOneOut()):
        ktae = KTAE(base)
        found = ktae(rewards, groups, tokens, mask)
        whole = base(rewards, groups, tokens, mask)
        keys = KTAE().keys(rewards[:6], tokens[:6], mask[:6]).float()
        assert torch.allclose(found[:6], (whole[:6, None] + keys) * mask[:6]) and not found[6:].any()
        assert ktae.metrics["key"] == pytest.approx(float(keys.sum()) / 44, abs=1e-6)
        share = keys.abs().sum() / (keys.abs().sum() + (whole[:6, None].abs() * mask[:6]).sum())
        assert ktae.metrics["key_share"] == pytest.approx(float(share), abs=1e-6)


def test_completions_that_no_reward_applies_to_are_no_evidence():
    tokens, mask = padded([*ROWS, [5, 5], [9]])
    rewards = torch.tensor([float(ok) for ok in RIGHT] + [float("nan")] * 2)
    keys = KTAE().keys(rewards, tokens, mask)
    assert torch.equal(keys[:6], KTAE().keys(rewards[:6], *padded(ROWS)))


def test_state_and_mistakes():
    inner = RunningMean()
    outer = KTAE(inner)
    assert outer.needs_group is False
    inner.baseline = 0.25
    again = KTAE(RunningMean())
    again.load_state_dict(outer.state_dict())
    assert again.base.baseline == 0.25
    for options in ({"fisher": 0.0, "gain": 0.0}, {"top": 0.0}, {"b": 2.0}, {"clamp": -1.0}):
        with pytest.raises(ConfigError, match="KTAE: needs"):
            KTAE(**options)


def test_the_configuration_runs(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    changes = {
        "model.rewards": '[{"class_path":"rewards.Format","init_args":{"pattern":"[^1]*1[\\\\s\\\\S]*"}}]',
        "model.sampling.max_new_tokens": 30,
    }
    unchanged = ("model.batch.prompts_per_rollout", "model.batch.group_size", "data.train_size")
    cli = run_config(["ktae"], reasoner, unchanged=unchanged, **changes)
    batch, metrics = cli.model.last_rollout, cli.trainer.callback_metrics
    assert batch.advantages.shape == batch.completion_ids.shape
    assert 0 < float(metrics["train/key_abs"]) < 1 and 0 < float(metrics["train/key_share"]) < 1
    # "1" decides the reward, so within a mixed group its key is the largest.
    one = cli.model.policy.tokenizer.convert_tokens_to_ids("1")
    rows = batch.rewards["format"].view(16, -1).std(1) > 0
    mixed = rows.repeat_interleave(batch.group_size)
    base = GroupNorm(eps=1e-6)(batch.rewards["format"], batch.groups, None, None)
    keys = (batch.advantages - base[:, None])[mixed & batch.action_mask.any(1)]
    assert mixed.any() and (keys[batch.completion_ids[mixed] == one] > 0.9).all()
    ends = torch.isin(batch.completion_ids, torch.tensor(cli.model.policy.eos_token_ids)) & batch.action_mask
    assert torch.allclose((batch.advantages - base[:, None])[ends], torch.zeros(int(ends.sum())), atol=1e-6)
