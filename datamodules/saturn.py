"""SATURN's Boolean satisfiability problems (arXiv 2505.16368): unlimited, verified by a rule, of any difficulty.

A level (n, k, l) has l clauses, each of n different variables out of k. A formula is made around a planted assignment,
so it can be satisfied. Its estimated difficulty is D = log2 k + 2 log2 l - n + k / n.

    python main.py fit --config configs/saturn.yaml
"""

import math
import random
import re
from itertools import combinations
from typing import Any

from datamodules.arithmetic import is_held_out
from datamodules.demonstrations import Demonstrations
from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError
from support.seeding import derive_seed

PROMPT = """Find truth values that satisfy a Boolean formula. The problem is a JSON object with these fields:

- "n_sat": how many variables a clause has.
- "k": how many variables there are; they are called A, B, C and so on.
- "clause": the formula. " & " (and) stands between clauses. The variables of a clause stand side by side, \
with an implied "or"; "!" negates the next one.

The answer is a string of k bits, 1 for true and 0 for false, in the order of the variables. \
Every assignment that satisfies the formula is right.
Reason step by step, and put the final answer into \\boxed{}.

Example: {"n_sat": 2, "k": 3, "clause": "!A!C & AB & B!C"}
Final answer: \\boxed{110}

The problem: {"n_sat": <n>, "k": <k>, "clause": "<clause>"}"""


def difficulty(n: int, k: int, clauses: int) -> float:
    """D(n, k, l) = log2 k + 2 log2 l - n + k / n, the paper's estimate; larger is harder."""
    return math.log2(k) + 2 * math.log2(clauses) - n + k / n


def literals(formula: str) -> list[list[str]]:
    """The literals of every clause: "!AB & AC" gives [["!A", "B"], ["A", "C"]]."""
    return [re.findall("!?[A-Z]", clause) for clause in formula.split(" & ")]


def satisfied(formula: str, bits: str) -> bool:
    """Whether every clause has a true literal.

    A missing bit counts as 0, surplus bits are ignored, and any other character makes no literal true.
    """

    def holds(literal: str) -> bool:
        variable = ord(literal[-1]) - ord("A")
        return (bits[variable] if variable < len(bits) else "0") == ("0" if literal[0] == "!" else "1")

    return all(any(map(holds, clause)) for clause in literals(formula))


def chance(formula: str, k: int) -> float:
    """Fraction of all 2^k assignments that satisfy a formula, the pass@1 of a blind guess.

    A truth table is an integer with one bit per assignment.
    """
    all_assignments = (1 << (1 << k)) - 1
    table = {chr(ord("A") + i): sum(1 << row for row in range(1 << k) if row >> i & 1) for i in range(k)}
    true = all_assignments
    for clause in literals(formula):
        clause_true = 0
        for literal in clause:
            clause_true |= table[literal[-1]] ^ (all_assignments if literal[0] == "!" else 0)
        true &= clause_true
    return true.bit_count() / (1 << k)


def clauses_for(bits: str, n: int) -> list[str]:
    """All clauses of n different variables that the assignment `bits` satisfies: C(k, n) (2^n - 1) of them."""
    clauses = []
    for variables in combinations(range(len(bits)), n):
        # A set bit of a pattern means that the literal agrees with the assignment; pattern 0 would be a false clause.
        for pattern in range(1, 2**n):
            clause = ""
            for i, variable in enumerate(variables):
                agrees = bool(pattern >> i & 1)
                clause += ("" if (bits[variable] == "1") == agrees else "!") + chr(ord("A") + variable)
            clauses.append(clause)
    return clauses


def formula(n: int, k: int, clauses: int, rng: random.Random) -> tuple[str, str]:
    """(formula, planted assignment): a random assignment, and different clauses that it satisfies, sorted."""
    bits = "".join(rng.choice("01") for _ in range(k))
    return " & ".join(sorted(rng.sample(clauses_for(bits, n), clauses))), bits


def check_level(level: Any) -> tuple[int, int, int]:
    """The level as (n, k, l). Raises ConfigError for a level that no formula can have."""
    n, k, clauses = level if len(level) == 3 else (0, 0, 0)
    max_clauses = math.comb(k, n) * (2**n - 1) if 0 < n <= k else 0
    if not 0 < clauses <= max_clauses or k > 16:
        raise ConfigError(
            f"the SAT level {list(level)} is impossible. A level is [n, k, l] with 1 <= n <= k <= 16 and 1 <= l <= "
            f"C(k, n) (2^n - 1), the number of clauses that one assignment satisfies"
            f"{f' (here {max_clauses})' if max_clauses else ''}; correct data.levels."
        )
    return n, k, clauses


def draw(
    level: tuple[int, int, int], size: int, held_out: bool, rng: random.Random, prompt: str = PROMPT
) -> list[dict[str, Any]]:
    """Rows of different formulas of one level, all held out or all for training; a hash of the text decides which.

    Raises:
        ConfigError: if fifty tries per row do not suffice, because a level with few clauses has few formulas.
    """
    n, k, clauses = level
    assignments: dict[str, str] = {}  # formula -> planted assignment
    for _ in range(50 * size):
        text, bits = formula(n, k, clauses, rng)
        if len(assignments) < size and is_held_out(text) == held_out:
            assignments.setdefault(text, bits)
    if len(assignments) < size:
        side = "held-out" if held_out else "training"
        raise ConfigError(
            f"the SAT level {list(level)} has fewer than {size} {side} formulas; lower data.train_size or "
            "data.val_size."
        )
    return [
        {
            "id": f"{n},{k}: {text}",
            "prompt": prompt.replace("<n>", str(n)).replace("<k>", str(k)).replace("<clause>", text),
            "answer": bits,
            "clause": text,
            "task": f"sat-{n}-{k}-{clauses}",
            "chance": chance(text, k),
        }
        for text, bits in assignments.items()
    ]


class SaturnPrompts(PromptData):
    """Prompt groups of SAT problems.

    The column `level` numbers the levels by difficulty from 0 on, for curricula; `chance` is the pass@1 of a blind
    guess.

    Args:
        levels: levels (n, k, l): variables per clause, variables, clauses. The default is the paper's for 1.5B; for 7B
            it has [3, 5, 13] and [3, 5, 15].
        train_size, val_size: numbers of problems per level.
        prompt: the text in which <n>, <k> and <clause> are replaced.
        seed: seed of the problems and of their order; the run's seed if None.

    Raises:
        ConfigError: for an impossible level, two levels of the same difficulty, a prompt without <clause>, or more
            problems than a level has.
    """

    def __init__(
        self,
        levels: list[list[int]] | None = None,
        train_size: int = 250,
        val_size: int = 20,
        prompt: str = PROMPT,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.levels = sorted(map(check_level, levels or [[3, 5, 5], [3, 5, 6]]), key=lambda level: difficulty(*level))
        self.difficulties = [difficulty(*level) for level in self.levels]
        if len(set(self.difficulties)) < len(self.levels):
            raise ConfigError(
                f"data.levels has two levels of the same difficulty: {[list(level) for level in self.levels]}; remove "
                "one of them."
            )
        if "<clause>" not in prompt:
            raise ConfigError(
                "data.prompt has no <clause>, so the prompts would not contain the problem; add <clause> to it."
            )
        self.train_size, self.val_size, self.prompt = train_size, val_size, prompt

    def _draw(self, size: int, held_out: bool) -> list[dict[str, Any]]:
        rng = random.Random(derive_seed("saturn", self.seed, held_out))
        return [
            row | {"level": number, "difficulty": self.difficulties[number]}
            for number, level in enumerate(self.levels)
            for row in draw(level, size, held_out, rng, self.prompt)
        ]

    def train_rows(self) -> list[Row]:
        return self._draw(self.train_size, held_out=False)

    def val_rows(self) -> list[Row]:
        return self._draw(self.val_size, held_out=True)


class SatDemonstrations(Demonstrations):
    """Training formulas with immediate answers, for the miniature's initial policy: it knows the format and can solve
    few problems.

    Args:
        levels: as in `SaturnPrompts`, drawn evenly.
        batch_size, train_size, val_size, seed: as in `Demonstrations`.
        guesses: fraction of rows whose answer is a random guess.
        unboxed: fraction of rows whose answer is not in a box.
    """

    def __init__(
        self,
        levels: list[list[int]],
        batch_size: int = 64,
        train_size: int = 20_000,
        val_size: int = 256,
        guesses: float = 0.3,
        unboxed: float = 0.1,
        seed: int | None = None,
    ) -> None:
        super().__init__("sat", batch_size, train_size, val_size, seed=seed)
        self.levels, self.guesses, self.unboxed = [check_level(level) for level in levels], guesses, unboxed

    def setup(self, stage: str) -> None:
        rng = random.Random(derive_seed("sat demonstrations", self.seed))
        rows: list[dict[str, Any]] = []
        while len(rows) < self.train_size + self.val_size:
            n, k, clauses = self.levels[len(rows) % len(self.levels)]
            text, bits = formula(n, k, clauses, rng)
            if is_held_out(text):
                continue
            if rng.random() < self.guesses:
                bits = "".join(rng.choice("01") for _ in range(k))
            answer = bits if rng.random() < self.unboxed else f"\\boxed{{{bits}}}"
            rows.append({"id": str(len(rows)), "prompt": text, "response": f"</think>{answer}"})
        self.train_data, self.val_data = rows[self.val_size :], rows[: self.val_size]
