"""Which completions of a rollout are learned from, by length and correctness (STILL-3, arXiv 2503.04548)."""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Selection = Literal["none", "questions", "responses"]


def selected_rows(
    lengths: Int[Tensor, "rows"], correct: Bool[Tensor, "rows"], groups: Int[Tensor, "rows"], how: Selection
) -> Bool[Tensor, "rows"]:
    """The rows that are learned from.

    Args:
        lengths: tokens of each completion. correct: whether it is right. groups: index of its prompt.
        how: none keeps all rows; questions keeps the groups whose right completions are longer on average than their wrong ones; responses keeps of
            every group the longest right and the shortest wrong completion if the former is longer. Groups of one kind are kept by none alone.
    """
    if how == "none":
        return torch.ones_like(correct)
    keep = torch.zeros_like(correct)
    for group in groups.unique().tolist():
        right, wrong = ((groups == group) & kind for kind in (correct, ~correct))
        if not right.any() or not wrong.any():
            continue
        if how == "questions" and lengths[right].float().mean() > lengths[wrong].float().mean():
            keep |= groups == group
        elif how == "responses" and lengths[right].max() > lengths[wrong].min():
            keep[lengths.masked_fill(~right, -1).argmax()] = True
            keep[lengths.masked_fill(~wrong, int(lengths.max()) + 1).argmin()] = True
    return keep
