"""KTAE: a per-token part of the advantage, from the association of the token with right answers (arXiv 2505.16826).

Over the completions of one prompt, every token has a 2 x 2 table: right or wrong completions, with or without it.
Fisher's exact test F and the information gain IG measure the strength of the association; the differences x of shares
and of frequencies give its direction:

    A_it = A_i + key(o_it),   key = top * (2 sigmoid(s) - 1),   s = (w_F F + w_IG IG) x / (w_F + w_IG)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from objectives.advantages import Advantage, GroupNorm, JudgedAdvantage
from objectives.shapes import Groups, PerRow, PerToken, TokenIds, TokenMask
from objectives.statistics import Reduce, as_floats
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper

Counts = Float[Tensor, "tokens"]


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k), minus infinity for an impossible choice."""
    possible = (k >= 0) & (k <= n)
    k = torch.where(possible, k, 0.0)
    return torch.where(possible, torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1), -torch.inf)


def fisher_p(a: Counts, b: Counts, right: int, wrong: int) -> Counts:
    """Two-sided p-values of Fisher's exact test.

    A p-value sums the probabilities of all tables with these margins that are at most as likely as the observed one.

    Args:
        a, b: numbers of right and of wrong completions that contain each token.
        right, wrong: numbers of right and of wrong completions.
    """
    x = torch.arange(right + 1, dtype=a.dtype, device=a.device)
    holding, size = (a + b)[:, None], torch.full_like(a, right + wrong)[:, None]
    chances = (
        _log_choose(torch.full_like(x, right), x)
        + _log_choose(torch.full_like(size, wrong), holding - x)
        - _log_choose(size, holding)
    ).exp()  # fmt: skip
    seen = chances.gather(1, a.long()[:, None])
    return (chances * (chances <= seen * (1 + 1e-7))).sum(1).clamp(max=1.0)  # equal chances differ by rounding


def _entropy(share: Tensor) -> Tensor:
    """Entropy of a coin with this probability, in bits."""
    return -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)) / torch.log(
        torch.tensor(2.0, dtype=share.dtype, device=share.device)
    )


def information_gain(a: Counts, b: Counts, right: int, wrong: int) -> Counts:
    """H(right or wrong) - H(right or wrong | with or without the token), in bits; arguments as in `fisher_p`."""
    total, holding = right + wrong, a + b
    lacking = total - holding
    conditional = holding / total * _entropy(a / holding.clamp(min=1)) + lacking / total * _entropy(
        (right - a) / lacking.clamp(min=1)
    )
    return _entropy(torch.full_like(a, right / total)) - conditional


@dataclass
class KTAE(JudgedAdvantage):
    """Key-token advantages added to those of whole completions; groups that are all right or all wrong get no keys.

    A token that only right or only wrong completions contain gets a key near 1 or -1 on little evidence, because the
    quotient of frequencies is then very large; `clamp` bounds it. The keys of a group need not sum to zero. Metrics:
    `train/key` (mean), `key_abs`, `key_saturated` (fraction of tokens beyond 0.99 top) and `key_share` (fraction of the
    mean absolute advantage).

    Args:
        base: the advantage of whole completions; GRPO's by default.
        fisher, gain: weights w_F and w_IG. The official scripts set a gain of 2, which their estimator ignores.
        top: largest key.
        k1, b: parameters of the frequencies, as in BM25.
        clamp: bound on the absolute direction x; None for no bound.
        correct_above: a completion is right if its total reward is above this; None uses the reward that judges
            correctness, or counts totals above 0 as right without such a reward.
    """

    base: Advantage = field(default_factory=lambda: GroupNorm(eps=1e-6))
    fisher: float = 1.0
    gain: float = 1.0
    top: float = 1.0
    k1: float = 2.0
    b: float = 0.5
    clamp: float | None = None
    correct_above: float | None = None

    def __post_init__(self) -> None:
        positive = self.top > 0 and self.k1 > 0 and (self.clamp is None or self.clamp > 0)
        if min(self.fisher, self.gain) < 0 or self.fisher + self.gain == 0 or not positive or not 0 <= self.b <= 1:
            raise ConfigError(
                "KTAE: needs fisher, gain >= 0 and not both 0, top, k1, clamp > 0 and 0 <= b <= 1; got "
                f"{self.fisher}, {self.gain}, {self.top}, {self.k1}, {self.clamp}, {self.b}."
            )
        self.needs_group = self.base.needs_group

    def prepare(self, reduce: Reduce, end_tokens: Sequence[int] = ()) -> None:
        super().prepare(reduce, end_tokens)
        self.base.prepare(reduce, end_tokens)

    def with_correctness(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None, mask: TokenMask | None, correct: PerRow | None
    ) -> PerToken:
        tokens, mask = self.tokens_and_mask(tokens, mask)
        rewards = as_floats(rewards)
        base = self.base.with_correctness(rewards, groups, tokens, mask, correct)
        base = (base if base.dim() == 2 else base[:, None]) * mask
        keys = torch.zeros_like(base)
        by_total = rewards > (self.correct_above or 0.0)
        right = self.right(rewards, correct, by_total, self.correct_above is not None)
        for group in range(int(groups.max()) + 1):
            rows = groups == group
            keys[rows] = self.keys(right[rows], tokens[rows], mask[rows]).to(keys.dtype)
        saturated = keys.abs() > 0.99 * self.top
        sums = torch.stack([entries.double().sum() for entries in (mask, keys, keys.abs(), base.abs(), saturated)])
        count, signed, absolute, base_sum, saturations = self.reduce(sums).tolist()
        self.metrics = {
            "key": signed / max(count, 1),
            "key_abs": absolute / max(count, 1),
            "key_saturated": saturations / max(count, 1),
            "key_share": absolute / (absolute + base_sum) if absolute + base_sum > 0 else 0.0,
        }
        return base + keys

    def keys(self, right: PerRow, tokens: TokenIds, mask: TokenMask) -> PerToken:
        """The keys of one group's tokens; 0 outside the mask, on tokens that end or pad, and on rows with NaN.

        Args:
            right: above 0 for right completions, NaN for unknown.
        """
        judged = ~right.isnan() & mask.any(1)
        is_right = judged & (right > 0)
        rights, wrongs = int(is_right.sum()), int((judged & ~is_right).sum())
        if not rights or not wrongs:
            return torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
        ids, place = torch.unique(tokens, return_inverse=True)
        counts = torch.zeros(len(tokens), len(ids), dtype=torch.float64, device=tokens.device).scatter_add_(
            1, place, mask.double()
        )
        holds = (counts > 0).double()
        a, b = holds[is_right].sum(0), holds[judged & ~is_right].sum(0)
        p = fisher_p(a, b, rights, wrongs)
        gained = information_gain(a, b, rights, wrongs)
        strength = self.fisher * torch.where(p < 1 - 1e-9, torch.exp(-2 * p), 0.0) + self.gain * gained
        x = torch.asin((a / rights).sqrt()) - torch.asin((b / wrongs).sqrt())
        x = x + self._frequencies(counts[is_right].sum(0), counts[judged & ~is_right].sum(0))
        if self.clamp is not None:
            x = x.clamp(-self.clamp, self.clamp)
        by_token = self.top * (2 * torch.sigmoid(strength * x / (self.fisher + self.gain)) - 1)
        ends = torch.tensor(self.end_tokens, dtype=ids.dtype, device=ids.device)
        by_token = torch.where(torch.isin(ids, ends), 0.0, by_token)
        return by_token[place] * (mask & judged[:, None])

    def _frequencies(self, in_right: Counts, in_wrong: Counts) -> Counts:
        """Difference of the quotients of each token's BM25 frequencies in right and in wrong completions."""
        totals = in_right.sum(), in_wrong.sum()

        def saturated(count: Counts, total: Tensor) -> Counts:
            f = count / total
            return f * (self.k1 + 1) / (f + self.k1 * (1 - self.b + self.b * total / (sum(totals) / 2)))

        tf_right, tf_wrong = saturated(in_right, totals[0]), saturated(in_wrong, totals[1])
        return tf_right / (tf_wrong + 1e-5) - tf_wrong / (tf_right + 1e-5)

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)


PAPER = Paper(
    name="ktae",
    title="KTAE",
    arxiv="2505.16826",
    idea="each token has its own part of the advantage",
    classes=("objectives.KTAE",),
    configs=("ktae",),
    effect="pass@1 0.63 → 0.91, and above 0.85 in no more rollouts than GRPO",
    experiment=Experiment(
        rollouts=40,
        arms={
            "ktae": {},
            "ktae, clamped": {"model.advantage.clamp": 1.0},
            "ktae on dapo": {"config": ["ktae", "ktae/dapo"]},
            "dapo": {"config": ["ktae", "ktae/dapo"], "model.advantage": "objectives.GroupNorm"},
            "grpo": {"model.advantage": "objectives.GroupNorm"},
        },
        columns={"val pass@1": "val/pass1", "val length": "val/length", "mean abs. key": "train/key_abs"},
        expect="A given accuracy is reached in no more rollouts than with GRPO.",
        claims=(
            Claim(text="pass@1 rises further than with GRPO", column="val pass@1", sign=1),
            Claim(text="than with DAPO", column="val pass@1", sign=1, arm="ktae on dapo", against="dapo"),
        ),
    ),
)
