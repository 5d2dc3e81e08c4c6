"""What a policy has recently answered, as questions whether it was right (self-verification, arXiv 2506.01369)."""

import random
from collections.abc import Sequence
from typing import Any

import torch

from datamodules.arithmetic import SLIP_BY_LEVEL, arithmetic_demonstrations, problem, trace
from datamodules.demonstrations import Demonstrations
from support.errors import ConfigError
from support.seeding import derive_seed

PROMPT = """Here are a problem and a proposed solution.

Problem:
<problem>

Solution:
<solution>

Is the final answer of this solution correct? Check it step by step, then end with one word: Yes or No."""


#: share of wrong solutions among those to be checked
WRONG = 0.6


def check_prompt(template: str) -> None:
    """Raises ConfigError for a template that would leave out the problem or the solution."""
    if "<problem>" not in template or "<solution>" not in template:
        raise ConfigError("verification.prompt must have <problem> and <solution> in it, which are replaced.")


def verify_row(row: dict[str, Any], solution: str, template: str = PROMPT) -> dict[str, Any]:
    """The question about one solution of a data row, which keeps the row's other columns."""
    problem = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    prompt = template.replace("<problem>", problem).replace("<solution>", solution)
    return {key: value for key, value in row.items() if key != "level"} | {
        "id": f"verify {row['id']} {solution}",
        "prompt": prompt,
        "task": "verify",
    }


class VerifyBuffer:
    """Questions about solutions, the same on all processes: of the newest `max_age` rollouts, and of those the newest `size`.

    Args:
        size: most questions. max_age: rollouts after which one is dropped.
    """

    def __init__(self, size: int = 5000, max_age: int = 60) -> None:
        if size < 1 or max_age < 1:
            raise ConfigError(f"verification.buffer_size is {size} and max_age {max_age}; both must be at least 1.")
        self.size, self.max_age = size, max_age
        self.rows: list[dict[str, Any]] = []

    def add(self, rows: Sequence[dict[str, Any]], rollout: int) -> None:
        """Take in the questions of a rollout, with its number, and forget those that are too old or too many."""
        self.rows += [row | {"rollout": rollout} for row in rows]
        self.rows = [row for row in self.rows if rollout - row["rollout"] < self.max_age][-self.size :]

    def draw(self, count: int, *key: int | str) -> list[dict[str, Any]]:
        """Different questions, as a function of the key; none if there are fewer."""
        if count > len(self.rows):
            return []
        generator = torch.Generator().manual_seed(derive_seed("verify buffer", *key))
        return [self.rows[i] for i in torch.randperm(len(self.rows), generator=generator)[:count].tolist()]


def check(steps: str, carry: bool, proposed: str) -> tuple[str, bool]:
    """The proposed result read backwards, then the worked sum with its digits beside the columns (`=` where one agrees, `!` where not); and whether all do.

    Digit by digit, because a small model compares single digits well and whole numbers badly; backwards first, because it otherwise learns to repeat
    its own digit, which is right most of the time.
    """
    digits, columns = proposed[::-1], steps.split(", ")
    own = [column[-1] for column in columns] + (["1"] if carry else [])
    asked = [*digits, *"-" * (len(own) - len(digits))]
    marks = [
        "=" if mine == theirs else "!"
        for mine, theirs in zip([*own, *"-" * (len(asked) - len(own))], asked, strict=True)
    ]
    beside = [f"{theirs}{mark}" for theirs, mark in zip(asked, marks, strict=True)]
    checked = ", ".join(f"{column} {mark}" for column, mark in zip(columns, beside, strict=False))
    return "; ".join([f"{digits}: {checked}", *beside[len(columns) :]]), "!" not in marks


class VerifyDemonstrations(Demonstrations):
    """Sums, a third of them to be solved and the others to be checked: worked out beside the proposed digits, then a verdict that is sometimes blind.

    Args:
        batch_size, train_size, val_size, seed: as in `Demonstrations`.
        prompt: of the questions. blind: share of verdicts that are drawn blindly.
        levels: numbers of digits of the sums to be checked.
    """

    def __init__(
        self,
        batch_size: int = 64,
        train_size: int = 20_000,
        val_size: int = 256,
        prompt: str = PROMPT,
        blind: float = 0.25,
        levels: list[int] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__("self-verify", batch_size, train_size, val_size, seed=seed)
        check_prompt(prompt)
        self.prompt, self.blind, self.levels = prompt, blind, levels or [1, 2, 3]

    def _question(self, rng: random.Random) -> dict[str, Any]:
        level = rng.choice(self.levels)
        row = problem(level, rng, held_out=False)
        a, b = map(int, row["prompt"][:-2].split("+"))
        steps, own = trace(a, b, rng, SLIP_BY_LEVEL[level])
        given = row["answer"]
        if rng.random() < WRONG:  # a wrong solution is one with slips in it
            while given == row["answer"]:
                _, given = trace(a, b, rng, 0.5)
        checked, agrees = check(steps, len(own) > level, given)
        verdict = rng.random() < 0.5 if rng.random() < self.blind else agrees
        return verify_row(row, given, self.prompt) | {"response": f"{checked}</think>{'Yes' if verdict else 'No'}"}

    def setup(self, stage: str) -> None:
        rng, size = random.Random(derive_seed("verify demonstrations", self.seed)), self.train_size + self.val_size
        solve = arithmetic_demonstrations(size, self.seed)
        rows = [self._question(rng) if i % 3 else solve[i] for i in range(size)]
        self.train_data, self.val_data = rows[self.val_size :], rows[: self.val_size]
