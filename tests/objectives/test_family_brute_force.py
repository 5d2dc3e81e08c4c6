"""Every loss, aggregation and KL estimator against plain Python floats: values, and gradients by finite differences.

A plain function is called with the log-probs at which it is differentiated and with a frozen copy, from which it takes
what must not carry a gradient.
"""

import itertools
import math

import pytest
import torch

from objectives import (
    CISPO,
    SAPO,
    VESPO,
    ClippedSurrogate,
    ConstantLength,
    GroupNorm,
    LeaveOneOut,
    PassAtK,
    Reinforce,
    SequenceMean,
    SequenceSum,
    TokenMean,
)
from objectives.kl import Estimator, kl_estimate, scheduled_coefficient
from objectives.policy_losses import log_ratios
from support.errors import ConfigError

LENGTHS = [1, 3, 2, 3]
ROWS, TIME = len(LENGTHS), 3
MASK = torch.tensor([[t < n for t in range(TIME)] for n in LENGTHS])
ADVANTAGES = [1.0, -0.7, 0.4, -1.5]
ADVANTAGE = torch.tensor(ADVANTAGES, dtype=torch.float64)[:, None].expand(ROWS, TIME)
BETA = 0.3


def table(seed, scale=1.0):
    return scale * torch.randn(ROWS, TIME, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OLD, REFERENCE = table(1) - 1, table(2) - 1
NEW = OLD + table(3, 0.5)
NEW[1, 0], NEW[1, 1], NEW[3, 2] = (
    OLD[1, 0] + 1.5,
    OLD[1, 1] - 0.7,
    OLD[3, 2] + 1.3,
)  # ratios 4.5, 0.5 and 3.7 where A < 0
OLD_ROWS, REFERENCE_ROWS, NEW_ROWS = OLD.tolist(), REFERENCE.tolist(), NEW.tolist()


def clip(x, low, high):
    return min(max(x, low), high)


def surrogate(low=0.2, high=0.28, dual=None, clamp=None):
    def plain(new, frozen, i, t):
        d, a = new[i][t] - OLD_ROWS[i][t], ADVANTAGES[i]
        rho = math.exp(d if clamp is None else clip(d, -clamp, clamp))
        loss = -min(rho * a, clip(rho, 1 - low, 1 + high) * a)
        return min(loss, -dual * a) if dual is not None and a < 0 else loss

    return plain


def delta_surrogate(new, frozen, i, t):
    """TRL's two-sided clip: the ratio itself is capped in the branch without the clip."""
    rho, a = math.exp(new[i][t] - OLD_ROWS[i][t]), ADVANTAGES[i]
    return -min(min(rho, 3.0) * a, clip(rho, 0.8, 1.28) * a)


def cispo(lower, upper):
    return lambda new, frozen, i, t: (
        -clip(math.exp(frozen[i][t] - OLD_ROWS[i][t]), lower, upper) * ADVANTAGES[i] * new[i][t]
    )


def sapo(new, frozen, i, t):
    tau = 1.0 if ADVANTAGES[i] > 0 else 1.05
    return -4 / tau / (1 + math.exp(-tau * (math.exp(new[i][t] - OLD_ROWS[i][t]) - 1))) * ADVANTAGES[i]


def vespo(new, frozen, i, t):
    w = math.exp(sum(frozen[i][s] - OLD_ROWS[i][s] for s in range(LENGTHS[i])))
    k, rate = (2.0, 3.0) if ADVANTAGES[i] >= 0 else (3.0, 2.0)
    return -math.exp(rate) * w**k * math.exp(-rate * w) * ADVANTAGES[i] * new[i][t]


LOSSES = {
    "clip": (ClippedSurrogate(0.2, 0.2), surrogate(0.2, 0.2)),
    "clip-higher": (ClippedSurrogate(0.2, 0.28), surrogate()),
    "dual clip": (ClippedSurrogate(0.2, 0.28, dual_clip=3.0), surrogate(dual=3.0)),
    "dual clip as TRL's delta": (ClippedSurrogate(0.2, 0.28, dual_clip=3.0), delta_surrogate),
    "clamped log-ratio": (ClippedSurrogate(0.2, 0.28, log_ratio_clamp=0.6), surrogate(clamp=0.6)),
    "CISPO, 1 + clip_high": (CISPO(clip_high=0.28, clip_low=0.2), cispo(0.8, 1.28)),
    "CISPO, ratio_cap": (CISPO(ratio_cap=2.0), cispo(0.0, 2.0)),
    "SAPO": (SAPO(), sapo),
    "VESPO": (VESPO(), vespo),
    "REINFORCE": (Reinforce(), lambda new, frozen, i, t: -ADVANTAGES[i] * new[i][t]),
}
AGGREGATIONS = {
    "sequence mean": (SequenceMean(), lambda i: 1 / (ROWS * LENGTHS[i])),
    "token mean": (TokenMean(), lambda i: 1 / sum(LENGTHS)),
    "sequence sum": (SequenceSum(), lambda i: 1 / ROWS),
    "constant length": (ConstantLength(5), lambda i: 1 / (ROWS * 5)),
    "constant length, batch left out": (ConstantLength(5, per_completion=False), lambda i: 1 / 5),
}


def places():
    return [(i, t) for i in range(ROWS) for t in range(LENGTHS[i])]


def check(ours, plain):
    """ours: tensor -> scalar tensor. plain: (rows of floats, frozen rows) -> float."""
    theta = NEW.clone().requires_grad_()
    value = ours(theta)
    value.backward()
    assert float(value.detach()) == pytest.approx(plain(NEW_ROWS, NEW_ROWS), rel=1e-6)
    step = 1e-6
    for i, t in itertools.product(range(ROWS), range(TIME)):
        moved = []
        for sign in (1, -1):
            rows = [list(row) for row in NEW_ROWS]
            rows[i][t] += sign * step
            moved.append(plain(rows, NEW_ROWS))
        assert float(theta.grad[i, t]) == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=2e-8), (i, t)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_the_formulas(loss, aggregation):
    (ours, plain), (weigh, weight) = LOSSES[loss], AGGREGATIONS[aggregation]
    weights = weigh(MASK).double()[:, None]

    def objective(theta):
        return (torch.where(MASK, ours(theta, OLD, ADVANTAGE, MASK)[0], 0.0) * weights).sum()

    check(objective, lambda new, frozen: sum(weight(i) * plain(new, frozen, i, t) for i, t in places()))


def plain_kl(estimator: Estimator, difference_clamp=math.inf, value_clamp=math.inf):
    def value(d):
        d = clip(d, -difference_clamp, difference_clamp)
        return clip(
            {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) + d - 1}[estimator.removesuffix("+")],
            -value_clamp,
            value_clamp,
        )

    def plain(new, frozen, i, t):
        d, fixed = new[i][t] - REFERENCE_ROWS[i][t], frozen[i][t] - REFERENCE_ROWS[i][t]
        return value(fixed) + d * d / 2 - fixed * fixed / 2 if estimator.endswith("+") else value(d)

    return plain


KLS = {
    "k1": (("k1",), False),
    "k2": (("k2",), False),
    "k3": (("k3",), False),
    "k1+": (("k1+",), False),
    "k3+": (("k3+",), False),
    "k3 clamped": (("k3", 0.8, 0.5), False),
    "k3+ clamped": (("k3+", 0.8, 0.5), False),
    "k3 weighted by the ratio": (("k3",), True),
}


@pytest.mark.parametrize("name", KLS)
def test_kl_terms_and_their_gradients_are_the_formulas(name):
    given, weighted = KLS[name]
    plain = plain_kl(*given)

    def objective(theta):
        penalty = kl_estimate(theta, REFERENCE, *given)
        if weighted:
            penalty = penalty * log_ratios(theta, OLD, MASK).exp()
        return (BETA * penalty * MASK).sum() / MASK.sum()

    def total(new, frozen):
        factor = (lambda i, t: math.exp(new[i][t] - OLD_ROWS[i][t])) if weighted else (lambda i, t: 1.0)
        return BETA * sum(plain(new, frozen, i, t) * factor(i, t) for i, t in places()) / sum(LENGTHS)

    check(objective, total)


def test_weighting_by_the_ratio_gives_the_gradient_of_the_kl_of_the_current_policy():
    """By enumeration over three tokens drawn from the old policy: the plain k3 has another gradient."""
    old = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    theta = torch.tensor([0.1, -0.4, 0.3], dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad((theta.softmax(0) * (theta.log_softmax(0) - reference)).sum(), theta)[0]

    def expected(weighted):
        log = theta.log_softmax(0)
        penalty = kl_estimate(log, reference, "k3") * ((log - old.log()).exp() if weighted else 1.0)
        return torch.autograd.grad((old * penalty).sum(), theta)[0]

    assert torch.allclose(expected(True), exact, atol=1e-12)
    assert not torch.allclose(expected(False), exact, atol=1e-2)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_and_processes_change_nothing(loss, aggregation):
    ours, weigh = LOSSES[loss][0], AGGREGATIONS[aggregation][0]
    whole = NEW.clone().requires_grad_()
    (torch.where(MASK, ours(whole, OLD, ADVANTAGE, MASK)[0], 0.0) * weigh(MASK)[:, None]).sum().backward()
    for splits in ([[0, 1], [2, 3]], [[0], [3, 1], [2]]):
        parts = NEW.clone().requires_grad_()
        for rows in splits:  # each as a process of its own, which knows the counts of all
            weights = weigh(MASK[rows], total_rows=ROWS, total_tokens=sum(LENGTHS))
            width = max(LENGTHS[i] for i in rows)
            mask = MASK[rows, :width]
            loss_of_part = ours(parts[rows, :width], OLD[rows, :width], ADVANTAGE[rows, :width], mask)[0]
            (torch.where(mask, loss_of_part, 0.0) * weights[:, None]).sum().backward()
        assert torch.allclose(parts.grad, whole.grad, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_rewards_give_exactly_no_gradient(loss):
    groups, rewards = torch.tensor([0, 0, 1, 1]), torch.tensor([0.1, 0.1, 0.0, 1.0])
    for advantage in (
        GroupNorm(),
        GroupNorm("none"),
        GroupNorm("batch_std"),
        LeaveOneOut(),
        LeaveOneOut("batch_std"),
        PassAtK(1),
    ):
        theta = NEW.clone().requires_grad_()
        values = advantage(rewards, groups, MASK.long(), MASK)[:, None].expand(ROWS, TIME)
        found = LOSSES[loss][0](theta, OLD, values, MASK)[0]
        torch.where(MASK, found, 0.0).sum().backward()
        assert torch.equal(theta.grad[:2], torch.zeros(2, TIME, dtype=torch.float64)) and theta.grad[2:].abs().sum() > 0


def test_what_stands_outside_the_mask_never_matters():
    for name, (ours, _) in LOSSES.items():
        wild = torch.where(MASK, NEW, torch.full_like(NEW, 500.0)).requires_grad_()
        torch.where(MASK, ours(wild, OLD, ADVANTAGE, MASK)[0], 0.0).sum().backward()
        calm = NEW.clone().requires_grad_()
        torch.where(MASK, ours(calm, OLD, ADVANTAGE, MASK)[0], 0.0).sum().backward()
        assert torch.equal(wild.grad, calm.grad), name


def test_shares_of_clipped_tokens():
    metrics = ClippedSurrogate(0.2, 0.28, dual_clip=3.0)(NEW, OLD, ADVANTAGE, MASK)[1]
    assert float(metrics["clip_fraction_dual"]) == 2
    assert float(CISPO(ratio_cap=2.0)(NEW, OLD, ADVANTAGE, MASK)[1]["clip_fraction"]) == sum(
        math.exp(NEW_ROWS[i][t] - OLD_ROWS[i][t]) > 2 for i, t in places()
    )


def test_a_schedule_of_beta_by_hand():
    assert [scheduled_coefficient(0.1, 0.0, p, "linear") for p in (0, 0.25, 1, 2)] == pytest.approx(
        [0.1, 0.075, 0.0, 0.0]
    )
    assert [scheduled_coefficient(0.0, 0.2, p, "cosine") for p in (0, 0.5, 1)] == pytest.approx([0.0, 0.1, 0.2])
    assert scheduled_coefficient(0.0, 0.2, 0.25, "cosine") == pytest.approx(0.1 * (1 - math.sqrt(0.5)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClippedSurrogate(0.2, 0.2, dual_clip=1.1), "would undo the clip"),
        (lambda: ClippedSurrogate(log_ratio_clamp=0.0), "above 0"),
        (lambda: CISPO(), "exactly one of clip_high"),
        (lambda: CISPO(clip_high=0.2, ratio_cap=2.0), "exactly one of clip_high"),
        (lambda: CISPO(ratio_cap=0.5, clip_low=0.2), "bounds"),
        (lambda: SAPO(temperature_positive=0.0), "above 0"),
        (lambda: VESPO(k_negative=0.0), "above 0"),
    ],
)
def test_mistakes_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
