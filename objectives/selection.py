"""Selection of the completions that carry loss, by length and correctness (STILL-3, arXiv 2503.04548)."""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Selection = Literal["none", "questions", "responses"]


def selected_rows(
    lengths: Int[Tensor, "rows"],
    correct: Bool[Tensor, "rows"],
    groups: Int[Tensor, "rows"],
    how: Selection,
    judged: Bool[Tensor, "rows"] | None = None,
) -> Bool[Tensor, "rows"]:
    """The rows that carry loss.

    Args:
        lengths: number of tokens of each completion.
        correct: whether each completion is right.
        groups: index of each completion's prompt.
        how: none keeps all rows; questions keeps the groups whose right completions are longer on average than their
            wrong ones; responses keeps the longest right and the shortest wrong completion of every group if the former
            is longer. Groups that are all right or all wrong are kept by none only.
        judged: rows whose correctness is known, all of them if None; the others count as neither right nor wrong.
    """
    if how == "none":
        return torch.ones_like(correct)
    judged = torch.ones_like(correct) if judged is None else judged
    keep = torch.zeros_like(correct)
    for group in groups.unique().tolist():
        right, wrong = ((groups == group) & judged & kind for kind in (correct, ~correct))
        if not right.any() or not wrong.any():
            continue
        if how == "questions" and lengths[right].float().mean() > lengths[wrong].float().mean():
            keep |= groups == group
        elif how == "responses" and lengths[right].max() > lengths[wrong].min():
            keep[lengths.masked_fill(~right, -1).argmax()] = True
            keep[lengths.masked_fill(~wrong, int(lengths.max()) + 1).argmin()] = True
    return keep
