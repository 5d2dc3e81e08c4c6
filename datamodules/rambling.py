"""Demonstrations for a reasoner that rambles: the start of rewards about length.

Once its columns are done it says so a random number of times before it answers. So the lengths of a problem's completions differ by a
factor of two to four, while a longer one is right as often as a short one.
"""

import random
from typing import Any

from datamodules.arithmetic import arithmetic_demonstrations
from support.seeding import derive_seed

PHRASE = "\nit is so"
#: chance of saying it once more, and how often at most
AGAIN = 0.75
MOST = 5


def rambling_demonstrations(size: int, seed: int) -> list[dict[str, Any]]:
    """Those of `arithmetic_demonstrations`, fewer of which answer at once; the others ramble before they close their reasoning."""
    rng = random.Random(derive_seed("rambling demonstrations", seed))
    rows = arithmetic_demonstrations(size, seed, direct=0.1)
    for row in rows:
        steps, closing, answer = row["response"].partition("</think>")
        if steps and closing:
            times = 0
            while times < MOST and rng.random() < AGAIN:
                times += 1
            row["response"] = steps + PHRASE * times + closing + answer
    return rows
