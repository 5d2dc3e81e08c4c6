"""Demonstrations for a reasoner that rambles: the start of rewards about length.

Its answer is followed by a random number of blank lines. So the lengths of a problem's completions differ by a factor of two to four,
while a longer one is right as often as a short one: blank lines behind an answer do not count.
"""

import random
from typing import Any

from datamodules.arithmetic import arithmetic_demonstrations
from support.seeding import derive_seed

#: chance of one more blank line, and the most of them
AGAIN = 0.96
MOST = 48


def rambling_demonstrations(size: int, seed: int) -> list[dict[str, Any]]:
    """Those of `arithmetic_demonstrations` with blank lines behind the answer, 21 in the mean."""
    rng = random.Random(derive_seed("rambling demonstrations", seed))
    rows = arithmetic_demonstrations(size, seed)
    for row in rows:
        blanks = 0
        while blanks < MOST and rng.random() < AGAIN:
            blanks += 1
        row["response"] += "\n" * blanks
    return rows
