"""Aggregations of per-token losses to a scalar: each is a weight per row, computed before the rows are split.

The loss is sum_i w_i * sum_t loss_{i,t} * mask_{i,t}. Because the weights come from the whole batch of an update (all
micro-batches, all ranks), any split into micro-batches gives the same gradient.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.shapes import PerRow, TokenMask
from support.errors import ConfigError


class Aggregation(ABC):
    """Weights of the rows of one optimiser step."""

    @abstractmethod
    def __call__(self, mask: TokenMask, total_rows: float | None = None, total_tokens: float | None = None) -> PerRow:
        """Weight of every row.

        Args:
            mask: True on tokens that carry loss. Rows without any such token do not count as rows.
            total_rows: number of rows that count over all ranks; None counts this rank's rows.
            total_tokens: number of tokens that count over all ranks; None counts this rank's tokens.
        """


def _totals(mask: Tensor, total_rows: float | None, total_tokens: float | None) -> tuple[Tensor, float, float]:
    lengths = mask.sum(1).float()
    rows = float((lengths > 0).sum()) if total_rows is None else total_rows
    tokens = float(lengths.sum()) if total_tokens is None else total_tokens
    return lengths, max(rows, 1.0), max(tokens, 1.0)


@dataclass
class SequenceMean(Aggregation):
    """Mean over each completion's tokens, then over completions: the original GRPO (arXiv 2402.03300, eq. 3)."""

    def __call__(self, mask: TokenMask, total_rows: float | None = None, total_tokens: float | None = None) -> PerRow:
        lengths, rows, _ = _totals(mask, total_rows, total_tokens)
        return torch.where(lengths > 0, 1.0 / (rows * lengths.clamp(min=1)), torch.zeros_like(lengths))


@dataclass
class TokenMean(Aggregation):
    """Mean over all tokens of the step (DAPO, arXiv 2503.14476): long completions weigh more."""

    def __call__(self, mask: TokenMask, total_rows: float | None = None, total_tokens: float | None = None) -> PerRow:
        lengths, _, tokens = _totals(mask, total_rows, total_tokens)
        return torch.full_like(lengths, 1.0 / tokens)


@dataclass
class SequenceSum(Aggregation):
    """Sum over each completion's tokens, mean over completions: the score-function estimator of REINFORCE and RLOO.

    For a loss that is the same on all tokens of a completion this is LUSPO's weighting by length (arXiv 2602.05261).
    """

    def __call__(self, mask: TokenMask, total_rows: float | None = None, total_tokens: float | None = None) -> PerRow:
        lengths, rows, _ = _totals(mask, total_rows, total_tokens)
        return torch.full_like(lengths, 1.0 / rows)


@dataclass
class ConstantLength(Aggregation):
    """Sum over tokens divided by (completions x a constant length): Dr. GRPO (arXiv 2503.20783), TRL's `dr_grpo`.

    Args:
        length: the constant, usually `max_new_tokens`.
        per_completion: False divides by the length alone, as verl's `seq-mean-token-sum-norm` does; the step then grows
            with the batch.
    """

    length: int
    per_completion: bool = True

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"ConstantLength: length is {self.length}; set aggregation.length to 1 or more tokens.")

    def __call__(self, mask: TokenMask, total_rows: float | None = None, total_tokens: float | None = None) -> PerRow:
        lengths, rows, _ = _totals(mask, total_rows, total_tokens)
        return torch.full_like(lengths, 1.0 / (self.length * (rows if self.per_completion else 1.0)))
