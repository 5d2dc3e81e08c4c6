"""The capital of the betting bound, computed cost by cost as the paper writes it."""

import math
from collections.abc import Iterator, Sequence


def capitals(costs: Sequence[float], claim: float, delta: float, horizon: int | None) -> Iterator[float]:
    """The capital against the claim "the mean is at least `claim`" after each cost.

    Args:
        costs: between 0 and 1.
        horizon: number of costs that the bets are made for; None for bets without an end.
    """
    capital, total, squares, variance = 1.0, 0.5, 0.25, 0.25
    for count, cost in enumerate(costs, start=1):
        pace = horizon if horizon is not None else count * math.log(1 + count)
        bet = min(math.sqrt(2 * math.log(1 / delta) / (pace * variance)), 0.75 / (1 - claim))
        capital *= 1 - bet * (cost - claim)
        yield capital
        total += cost
        squares += (cost - total / (count + 1)) ** 2
        variance = squares / (count + 1)
