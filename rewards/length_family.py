"""Other length rewards in the common form of LASER's paper (arXiv 2505.15612), R = C + lambda S, for comparison.

rewards: [{class_path: rewards.ExactAnswer}, {class_path: rewards.KimiLength}]
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.judged import JudgedReward
from rollouts import RolloutBatch
from support.errors import ConfigError


class KimiLength(JudgedReward):
    """0.5 - (L - Lmin) / (Lmax - Lmin) within the group, at most 0 for wrong completions (Kimi k1.5, arXiv 2501.12599).

    0 if all completions of the group have the same length.
    """

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        lengths = batch.lengths.float().view(-1, batch.group_size)
        shortest, spread = lengths.amin(1, keepdim=True), lengths.amax(1, keepdim=True) - lengths.amin(1, keepdim=True)
        place = torch.where(spread > 0, 0.5 - (lengths - shortest) / spread.clamp(min=1), 0.0).flatten()
        return torch.where(self.correct(batch), place, place.clamp(max=0.0))


class NormalisedLength(JudgedReward):
    """-sigmoid((L - mean) / std) for right completions, with mean and deviation of the group's right ones.

    Source: Arora and Zanette, arXiv 2502.04463. A single right completion is at its own mean and gets -0.5.
    """

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        correct = self.correct(batch).view(-1, batch.group_size)
        lengths = batch.lengths.float().view_as(correct)
        count = correct.sum(1, keepdim=True)
        mean = (lengths * correct).sum(1, keepdim=True) / count.clamp(min=1)
        variance = ((lengths - mean) ** 2 * correct).sum(1, keepdim=True) / (count - 1).clamp(min=1)
        z = (lengths - mean) / (variance.sqrt() + 1e-6)
        return (-torch.sigmoid(z) * correct).flatten()


class TargetLength(JudgedReward):
    """Base class of rewards with a target length in tokens, for all prompts or from a data column.

    Args:
        target: number of tokens, or the name of the data column that contains it.
        correctness, weight, name: as in every JudgedReward.
    """

    def __init__(
        self, target: int | str, correctness: str = "exact_answer", weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(correctness, weight, name)
        if isinstance(target, int) and target < 1:
            raise ConfigError(
                f"{type(self).__name__}: target is {target}; set it to a number of tokens, 1 or above, or to the name "
                "of a data column."
            )
        self.target = target

    def excess(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """L - L_T."""
        targets = batch.column(self.target) if isinstance(self.target, str) else self.target
        return batch.lengths.float() - torch.as_tensor(targets, dtype=torch.float32, device=batch.lengths.device)


class Truncation(TargetLength):
    """The correctness reward up to the target, `beyond` above it; the correctness reward itself has weight 0.

    Args:
        beyond: reward above the target, the paper's rho.
        target, correctness, weight, name: as in TargetLength.
    """

    def __init__(
        self,
        target: int | str,
        beyond: float = 0.0,
        correctness: str = "exact_answer",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(target, correctness, weight, name)
        self.beyond = beyond

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return torch.where(self.excess(batch) <= 0, self.given(batch), self.beyond)


class L1Exact(TargetLength):
    """-|L - L_T|, right or wrong (L1, arXiv 2503.04697); `weight` is its alpha, 0.0003 there."""

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return -self.excess(batch).abs()


class L1Max(TargetLength):
    """clip(alpha (L_T - L) + delta, 0, 1) for right completions, 0 for wrong ones.

    The correctness reward itself has weight 0.

    Args:
        alpha, delta: 0.0003 per token and 0.5, as in L1.
        target, correctness, weight, name: as in TargetLength.
    """

    def __init__(
        self,
        target: int | str,
        alpha: float = 0.0003,
        delta: float = 0.5,
        correctness: str = "exact_answer",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(target, correctness, weight, name)
        self.alpha, self.delta = alpha, delta

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return (self.delta - self.alpha * self.excess(batch)).clamp(0.0, 1.0) * self.correct(batch)
