"""Formulas on which other projects disagree: each convention in plain floats, our option, and the page with both."""

import math
import statistics
from pathlib import Path

import pytest
import torch

from objectives import CISPO, ClippedSurrogate, ConstantLength, GroupNorm, TokenMean
from objectives.kl import kl_estimate

PAGE = (Path(__file__).resolve().parents[2] / "docs/objectives.md").read_text()

# Four completions of two tokens with advantages 1, 1, -1, -1 and these ratios. Log-probs under the sampling policy: -1.
RATIOS = [[1.0, 1.5], [0.7, 1.1], [4.0, 0.9], [1.2, 0.5]]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0]
CAP = 16  # longest completion
MASK = torch.ones(4, 2, dtype=torch.bool)
OLD = torch.full((4, 2), -1.0, dtype=torch.float64)
NEW = OLD + torch.tensor(RATIOS, dtype=torch.float64).log()


def clip(x, low, high):
    return min(max(x, low), high)


def surrogate(rho, a):
    return -min(rho * a, clip(rho, 0.8, 1.2) * a)


def tokens(loss):
    return [loss(rho, a) for rhos, a in zip(RATIOS, ADVANTAGES, strict=True) for rho in rhos]


def ours(loss, aggregation=None):
    by_token, _ = loss(NEW, OLD, torch.tensor(ADVANTAGES, dtype=torch.float64)[:, None].expand(4, 2), MASK)
    return float((by_token * (aggregation or TokenMean())(MASK).double()[:, None]).sum())


def group(*given, **options):
    return float(
        GroupNorm(*given, **options)(torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long), MASK.long(), MASK)[
            0
        ]
    )


def cispo(low, high):
    return statistics.fmean(tokens(lambda rho, a: -clip(rho, low, high) * a * (math.log(rho) - 1)))


def far_kl(**clamps):
    """One token that the reference likes e^5 times more."""
    return float(kl_estimate(torch.tensor(-6.0), torch.tensor(-1.0), "k3", **clamps))


REWARDS = [1.0, 0.0, 0.0, 0.0]

#: as on the page: (what the others compute, what our option gives)
CASES = {
    "TRL's loss without a bound below": (statistics.fmean(tokens(surrogate)), ours(ClippedSurrogate())),
    "verl's dual clip, c = 3": (
        statistics.fmean(tokens(lambda rho, a: min(surrogate(rho, a), -3 * a) if a < 0 else surrogate(rho, a))),
        ours(ClippedSurrogate(dual_clip=3.0)),
    ),
    "TRL's delta = 3": (
        statistics.fmean(tokens(lambda rho, a: -min(min(rho, 3) * a, clip(rho, 0.8, 1.2) * a))),
        ours(ClippedSurrogate(dual_clip=3.0)),
    ),
    "TRL's dr_grpo": (sum(tokens(surrogate)) / (4 * CAP), ours(ClippedSurrogate(), ConstantLength(CAP))),
    "verl's seq-mean-token-sum-norm": (
        sum(tokens(surrogate)) / CAP,
        ours(ClippedSurrogate(), ConstantLength(CAP, per_completion=False)),
    ),
    "TRL's cispo, epsilon_high 0.28": (cispo(0, 0.28), ours(CISPO(ratio_cap=0.28))),
    "TRL's cispo, epsilon_high 1.28": (cispo(0, 1.28), ours(CISPO(ratio_cap=1.28))),
    "open-instruct's cispo, 0.28": (cispo(0, 1.28), ours(CISPO(clip_high=0.28))),
    "verl's cispo, 0.2 and 0.28": (cispo(0.8, 1.28), ours(CISPO(clip_high=0.28, clip_low=0.2))),
    "TRL's group deviation": (0.75 / (statistics.stdev(REWARDS) + 1e-4), group(eps=1e-4)),
    "verl's": (0.75 / (statistics.stdev(REWARDS) + 1e-6), group(eps=1e-6)),
    "OpenRLHF's": (0.75 / (statistics.stdev(REWARDS) + 1e-9), group(eps=1e-9)),
    "open-instruct's": (0.75 / (statistics.pstdev(REWARDS) + 1e-8), group(eps=1e-8, deviation="population")),
    "prime-rl's": (0.75, group("none")),
    "TRL's k3": (math.exp(5) - 5 - 1, far_kl()),
    "verl's k3": (min(math.exp(5) - 5 - 1, 10.0), far_kl(difference_clamp=20.0, value_clamp=10.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_our_option_has_the_peers_number(case):
    theirs, found = CASES[case]
    assert found == pytest.approx(theirs, rel=1e-5)


def test_the_numbers_differ_where_the_page_says_so():
    distinct = {f"{theirs:.4f}" for theirs, _ in CASES.values()}
    assert len(distinct) == len(CASES) - 3, (
        "TRL's delta is the dual clip; TRL's 1.28 is open-instruct's 0.28; 1e-6 and 1e-9 agree to four digits"
    )


@pytest.mark.parametrize("case", CASES)
def test_the_page_shows_both_numbers(case):
    theirs, found = CASES[case]
    assert f"| {case} | {theirs:.4f} | {found:.4f} |" in PAGE
