"""Demonstrations for a reasoner that rambles, the initial policy of methods that reward short completions.

A random number of blank lines follows its answer. So the lengths of a problem's completions differ by a factor of two
to four, while long completions are right as often as short ones: blank lines after an answer do not count.
"""

import random
from typing import Any

from datamodules.arithmetic import arithmetic_demonstrations
from support.seeding import derive_seed

#: probability of one more blank line, and the maximum number of them
MORE_PROBABILITY = 0.96
MAX_BLANKS = 48


def rambling_demonstrations(size: int, seed: int) -> list[dict[str, Any]]:
    """The rows of `arithmetic_demonstrations` with blank lines after the answer, 21 on average."""
    rng = random.Random(derive_seed("rambling demonstrations", seed))
    rows = arithmetic_demonstrations(size, seed)
    for row in rows:
        blanks = 0
        while blanks < MAX_BLANKS and rng.random() < MORE_PROBABILITY:
            blanks += 1
        row["response"] += "\n" * blanks
    return rows
