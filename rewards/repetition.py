"""Texts that repeat themselves, found by n-grams of tokens."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from rollouts import RolloutBatch


def places(tokens: Sequence[int], n: int) -> dict[tuple[int, ...], list[int]]:
    """Every n-gram -> its start positions, in order."""
    starts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for start in range(len(tokens) - n + 1):
        starts[tuple(tokens[start : start + n])].append(start)
    return starts


def loops(tokens: Sequence[int], n: int = 4, times: int = 3) -> bool:
    """Whether a text repeats itself, as in LASER-DE's code.

    It does if an n-gram occurs often and close together, or if a 2n-gram occurs twice.

    Args:
        n: number of tokens of an n-gram; n-grams of a single repeated token are skipped.
        times: minimum number of occurrences, two of which must be closer than a third of the text.
    """
    if len(tokens) <= 2 * n:
        return False
    for gram, starts in places(tokens, n).items():
        close = any(later - earlier < len(tokens) // 3 for earlier, later in zip(starts, starts[1:], strict=False))
        if len(starts) >= times and close and len(set(gram)) > 1:
            return True
    return len(tokens) >= 4 * n and any(len(starts) > 1 for starts in places(tokens, 2 * n).values())


def looping_rows(batch: RolloutBatch, rows: Bool[Tensor, "rows"], n: int, times: int, key: str) -> Bool[Tensor, "rows"]:
    """The completions, among some, that repeat themselves; each is searched once per batch.

    Args:
        rows: the completions to search; False for the others.
        n, times: as in `loops`.
        key: under which the batch keeps what was found.
    """
    tested, repeating = batch.tested.setdefault(key, {}), torch.zeros_like(rows)
    for row in rows.nonzero().flatten().tolist():
        if row not in tested:
            tokens = batch.completion_ids[row][batch.completion_mask[row]].tolist()
            tested[row] = loops(tokens, n, times)
        repeating[row] = tested[row]
    return repeating
