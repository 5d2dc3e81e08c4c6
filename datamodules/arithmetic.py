"""Addition problems whose difficulty is the number of digits: problems, worked traces, prompt groups.

Half of a problem's difficulty is in its carries, so a model that writes them out succeeds where one that answers at
once fails. A hash of a problem's text decides whether it is held out or a training problem, so neither split can leak
into the other.
"""

import random
from typing import Any

from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError
from support.seeding import derive_seed

#: levels of the demonstrations that answer at once: mostly easy ones, as people do
DIRECT_LEVELS = [1] * 3 + [2] * 13 + [3, 3, 4, 5]
#: level -> probability of a slip (a lost carry or a miscount) in one column: demonstrations are human-like, not perfect
SLIP_BY_LEVEL = {1: 0.01, 2: 0.04, 3: 0.12, 4: 0.20, 5: 0.26, 6: 0.30}


def is_held_out(text: str) -> bool:
    """Whether a problem is held out: one in five is, by a hash of its text."""
    return derive_seed("held out", text) % 5 == 0


def problem(level: int, rng: random.Random, held_out: bool) -> dict[str, Any]:
    """One addition of two numbers of `level` digits each, held out or not as asked."""
    low, high = (0, 9) if level == 1 else (10 ** (level - 1), 10**level - 1)
    while True:
        a, b = rng.randint(low, high), rng.randint(low, high)
        text = f"{a}+{b}=?"
        if is_held_out(text) == held_out:
            return {"id": text, "prompt": text, "answer": str(a + b), "task": f"addition-{level}", "level": level}


def trace(a: int, b: int, rng: random.Random, slip: float = 0.0) -> tuple[str, str]:
    """Worked addition: (columns from right to left as digit+digit+carry=sum, the answer that they give).

    Args:
        a, b: numbers of the same length, or of different lengths; the shorter one is padded with zeros.
        slip: probability that the sum of a column is wrong by one.
    """
    width = max(len(str(a)), len(str(b)))
    digits_a, digits_b, carry = str(a).zfill(width)[::-1], str(b).zfill(width)[::-1], 0
    columns, answer = [], ""
    for x, y in zip(digits_a, digits_b, strict=True):
        total = int(x) + int(y) + carry
        if rng.random() < slip:
            total = min(19, max(0, total + rng.choice([-1, 1])))
        columns.append(f"{x}+{y}+{carry}={total}")
        answer, carry = str(total % 10) + answer, total // 10
    return ", ".join(columns), ("1" if carry else "") + answer


class ArithmeticPrompts(PromptData):
    """Prompt groups of additions.

    Args:
        levels: numbers of digits, drawn evenly; repeat one to draw it more often. The default is half easy, so that
            about half of the problems can be solved without thinking.
        train_size: number of training problems per epoch.
        val_size: number of held-out problems.
        seed: seed of the problems and of their order; the run's seed if None.
    """

    def __init__(
        self, levels: list[int] | None = None, train_size: int = 4096, val_size: int = 250, seed: int | None = None
    ) -> None:
        super().__init__(seed=seed)
        self.levels = levels or [1, 1, 2, 2, 3, 4, 5]
        if not set(self.levels) <= set(SLIP_BY_LEVEL):
            raise ConfigError(
                f"data.levels is {self.levels}; every level is a number of digits and must be between 1 and 6."
            )
        self.train_size, self.val_size = train_size, val_size

    def _draw(self, count: int, held_out: bool) -> list[dict[str, Any]]:
        rng = random.Random(derive_seed("arithmetic", self.seed, held_out))
        return [problem(self.levels[i % len(self.levels)], rng, held_out) for i in range(count)]

    def train_rows(self) -> list[Row]:
        return self._draw(self.train_size, held_out=False)

    def val_rows(self) -> list[Row]:
        return self._draw(self.val_size, held_out=True)


def arithmetic_demonstrations(size: int, seed: int, direct: float = 0.4, unforced: float = 0.1) -> list[dict[str, Any]]:
    """Rows for supervised fine-tuning of a reasoner whose prompt ends with an open <think>.

    Most rows think, with slips. The fraction `direct` answers at once. In these rows the closing </think> is a
    `prefix`, which is given and not learned, except in a fraction `unforced` of them; so the model can answer without
    thinking, yet thinks unless told otherwise.
    """
    rng = random.Random(derive_seed("demonstrations", seed))
    rows = []
    for index in range(size):
        at_once = rng.random() < direct
        row = problem(rng.choice(DIRECT_LEVELS) if at_once else 1 + index % 5, rng, held_out=False)
        a, b = map(int, row["prompt"][:-2].split("+"))
        if at_once:
            forced = rng.random() >= unforced
            row |= {"prefix": "</think>" if forced else "", "response": ("" if forced else "</think>") + row["answer"]}
        else:
            steps, answer = trace(a, b, rng, SLIP_BY_LEVEL[row["level"]])
            row |= {"prefix": "", "response": f"{steps}</think>{answer}"}
        rows.append(row)
    return rows
