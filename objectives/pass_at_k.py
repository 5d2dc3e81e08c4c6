"""Advantages that maximise pass@k, the chance that at least one of k completions is right, instead of the mean reward.

With c of n completions right, rate(n, c, k) = 1 - C(n - c, k) / C(n, k) estimates pass@k without bias (Chen et al.,
arXiv 2107.03374). earned_i is the mean over the sets of k that contain completion i: 1 if it is right itself, else
rate(n - 1, c, k - 1) of the others. Then k/n * sum_i earned_i * grad log pi(o_i) is an unbiased estimate of grad pass@k
(Walder & Karkhanis, arXiv 2505.15201, theorem 2). It remains unbiased if a number that does not depend on completion i
is subtracted from earned_i.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from objectives.advantages import JudgedAdvantage
from objectives.shapes import Groups, PerRow, TokenIds, TokenMask
from objectives.statistics import as_floats, group_sums
from support.errors import ConfigError


def pass_rate(n: Float[Tensor, "*shape"], c: Float[Tensor, "*shape"], k: int) -> Float[Tensor, "*shape"]:
    """1 - C(n - c, k) / C(n, k): the fraction of sets of k among n that contain at least one of the c right ones."""
    n, c = as_floats(n), as_floats(c)
    none = torch.ones_like(n)
    for i in range(k):
        none = none * (n - c - i).clamp(min=0) / (n - i).clamp(min=1)
    return 1 - none


@dataclass
class PassAtK(JudgedAdvantage):
    """Advantages whose policy gradient is that of pass@k, from groups of more than k completions.

    Baseline "others": A_i = k * (earned_i - rate(n - 1, c - right_i, k)), with the pass@k of the other completions. Its
    gradient under `SequenceSum` is an unbiased estimate of pass@k's; k = 1 is RLOO. Baseline "group":
    A_i = (earned_i - rate) / sqrt(rate (1 - rate)) with rate = rate(n, c, k), the analytical advantage of pass@k
    training (Z. Chen et al., arXiv 2508.10751), which is scaled and therefore biased. Groups that are all right or all
    wrong get exactly zero.

    Args:
        k: the k of pass@k.
        baseline: subtracted from earned_i, see above.
        correct_at: a completion is right if its total reward is at least this; None uses the reward that judges
            correctness, or counts totals of 1 or more as right without such a reward.
    """

    k: int
    baseline: Literal["others", "group"] = "others"
    correct_at: float | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"PassAtK: k is {self.k}; set it to 1 or more.")

    def with_correctness(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None, mask: TokenMask | None, correct: PerRow | None
    ) -> PerRow:
        rewards = as_floats(rewards)
        by_total = rewards >= (1.0 if self.correct_at is None else self.correct_at)
        judged = self.right(rewards, correct, by_total, self.correct_at is not None)
        valid, right = ~judged.isnan(), (judged >= 1).to(rewards.dtype)
        n, c = group_sums(valid.to(rewards.dtype), groups)[groups], group_sums(right, groups)[groups]
        needed = self.k + int(self.baseline == "others")
        if int(groups.bincount().max()) < needed:
            raise ConfigError(
                f"PassAtK: k={self.k} with baseline {self.baseline!r} needs groups of at least {needed}; raise "
                "batch.group_size."
            )
        earned = torch.where(right > 0, 1.0, pass_rate(n - 1, c, self.k - 1))
        if self.baseline == "others":
            advantages = self.k * (earned - pass_rate(n - 1, c - right, self.k))
        else:
            rate = pass_rate(n, c, self.k)
            spread = (rate * (1 - rate)).sqrt()
            advantages = torch.where(
                spread > 0, (earned - rate) / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0
            )
        # Without the rows that no reward applied to, too few may remain for a set of k.
        return torch.where(valid & (n >= needed), advantages, 0.0)
