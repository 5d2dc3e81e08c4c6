"""Demonstrations for a reasoner that overthinks and can switch, the initial policy of AdaptThink and AutoThink.

Its reasoning works through five columns even for short operands, so thinking costs as much on an easy problem as on a
hard one. Under the plain prompt it thinks; with an ellipsis after <think> it thinks or answers at once with equal
probability at any difficulty, as AutoThink (arXiv 2505.10832, section 3.1) found for DeepSeek-R1's distilled models.
"""

import random
from typing import Any

from datamodules.arithmetic import DIRECT_LEVELS, SLIP_BY_LEVEL, problem, trace
from support.seeding import derive_seed

ELLIPSIS = "\n...\n"
COLUMNS = 5


def padded_trace(a: int, b: int, rng: random.Random, slip: float) -> tuple[str, str]:
    """As `trace`, continued with columns of zeros up to five; the answer is the same."""
    steps, answer = trace(a, b, rng, slip)
    carry = int(len(answer) > len(str(a)))
    zero_columns = [f"0+0+{carry if i == 0 else 0}={carry if i == 0 else 0}" for i in range(COLUMNS - len(str(a)))]
    return ", ".join([steps, *zero_columns]), answer


def switching_demonstrations(size: int, seed: int, direct: float = 0.4, unforced: float = 0.02) -> list[dict[str, Any]]:
    """Rows for supervised fine-tuning, half under the plain prompt and half with the ellipsis as a given prefix.

    Plain rows are as in `arithmetic_demonstrations`: the fraction `direct` answers at once, and its </think> is given
    and not learned except in a fraction `unforced` of them. With the ellipsis, half of the rows of any level answer at
    once, and their </think> is learned.
    """
    rng = random.Random(derive_seed("switching demonstrations", seed))
    rows = []
    for index in range(size):
        plain = rng.random() < 0.5
        at_once = rng.random() < (direct if plain else 0.5)
        row = problem(rng.choice(DIRECT_LEVELS) if plain and at_once else 1 + index % 5, rng, held_out=False)
        a, b = map(int, row["prompt"][:-2].split("+"))
        if at_once:
            forced = plain and rng.random() >= unforced
            row |= {"prefix": "</think>" if forced else "", "response": ("" if forced else "</think>") + row["answer"]}
        else:
            steps, answer = padded_trace(a, b, rng, SLIP_BY_LEVEL[row["level"]])
            row |= {"prefix": "", "response": f"{steps}</think>{answer}"}
        if not plain:
            row["prefix"] = ELLIPSIS
        rows.append(row)
    return rows
