"""Texts that repeat themselves, found by n-grams of tokens."""

from collections import defaultdict
from collections.abc import Sequence


def places(tokens: Sequence[int], n: int) -> dict[tuple[int, ...], list[int]]:
    """Every n-gram -> where it begins, in order."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for start in range(len(tokens) - n + 1):
        found[tuple(tokens[start : start + n])].append(start)
    return found


def loops(tokens: Sequence[int], n: int = 4, times: int = 3) -> bool:
    """Whether a text repeats itself: an n-gram that occurs often and close together, or one of 2n tokens that occurs twice (as in LASER-DE's code).

    Args:
        n: tokens of an n-gram; those of one token only are passed over.
        times: occurrences from which an n-gram counts, of which two neighbours are closer than a third of the text.
    """
    if len(tokens) <= 2 * n:
        return False
    for gram, starts in places(tokens, n).items():
        close = any(later - earlier < len(tokens) // 3 for earlier, later in zip(starts, starts[1:], strict=False))
        if len(starts) >= times and close and len(set(gram)) > 1:
            return True
    return len(tokens) >= 4 * n and any(len(starts) > 1 for starts in places(tokens, 2 * n).values())
