"""Self-verification (arXiv 2506.01369): questions whether recent answers of the policy are correct."""

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


#: fraction of wrong solutions among those to be checked
WRONG = 0.6


def check_prompt(template: str, name: str = "verification.prompt") -> None:
    """Raise ConfigError for a template without the problem or the solution.

    Args:
        name: the setting that holds the template.
    """
    if "<problem>" not in template or "<solution>" not in template:
        raise ConfigError(f"{name} must contain <problem> and <solution>, which are replaced; add what is missing.")


def verify_row(row: dict[str, Any], solution: str, template: str = PROMPT) -> dict[str, Any]:
    """The question about one solution of a data row, with the row's other columns except `level`."""
    problem = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    prompt = template.replace("<problem>", problem).replace("<solution>", solution)
    return {key: value for key, value in row.items() if key != "level"} | {
        "id": f"verify {row['id']} {solution}",
        "prompt": prompt,
        "task": "verify",
    }


class VerifyBuffer:
    """Questions about solutions of the latest `max_age` rollouts, at most the latest `size`; equal on all processes.

    Args:
        size: maximum number of questions.
        max_age: number of rollouts after which a question is dropped.
    """

    def __init__(self, size: int = 5000, max_age: int = 60) -> None:
        if size < 1 or max_age < 1:
            raise ConfigError(
                f"verification.buffer_size is {size} and verification.max_age is {max_age}; both must be at least 1."
            )
        self.size, self.max_age = size, max_age
        self.rows: list[dict[str, Any]] = []

    def add(self, rows: Sequence[dict[str, Any]], rollout: int) -> None:
        """Add the questions of a rollout, and drop those that are too old or too many.

        Args:
            rollout: number of the rollout.
        """
        self.rows += [row | {"rollout": rollout} for row in rows]
        self.rows = [row for row in self.rows if rollout - row["rollout"] < self.max_age][-self.size :]

    def draw(self, count: int, *key: int | str) -> list[dict[str, Any]]:
        """`count` different questions, as a function of the key; an empty list if the buffer has fewer."""
        if count > len(self.rows):
            return []
        generator = torch.Generator().manual_seed(derive_seed("verify buffer", *key))
        return [self.rows[i] for i in torch.randperm(len(self.rows), generator=generator)[:count].tolist()]


def check(steps: str, carry: bool, proposed: str) -> tuple[str, bool]:
    """(text of the check, whether all digits agree) for a proposed result of a worked sum.

    The text is the proposed result read backwards, then the columns of the sum, each followed by the proposed digit and
    `=` or `!`. It goes digit by digit because a small model compares single digits well and whole numbers badly. It
    begins with the proposed digits because the model otherwise learns to repeat its own, which are mostly right.

    Args:
        steps: columns as `trace` writes them.
        carry: whether the sum has one digit more than columns.
        proposed: the result to check.
    """
    digits, columns = proposed[::-1], steps.split(", ")
    computed_digits = [column[-1] for column in columns] + (["1"] if carry else [])
    length = max(len(computed_digits), len(digits))
    computed_digits += "-" * (length - len(computed_digits))
    proposed_digits = [*digits, *"-" * (length - len(digits))]
    marks = ["=" if ours == theirs else "!" for ours, theirs in zip(computed_digits, proposed_digits, strict=True)]
    verdicts = [f"{digit}{mark}" for digit, mark in zip(proposed_digits, marks, strict=True)]
    checked = ", ".join(f"{column} {verdict}" for column, verdict in zip(columns, verdicts, strict=False))
    return "; ".join([f"{digits}: {checked}", *verdicts[len(columns) :]]), "!" not in marks


class VerifyDemonstrations(Demonstrations):
    """Sums, one third to be solved and two thirds to be checked by digits, with a verdict that is sometimes random.

    Args:
        batch_size, train_size, val_size, seed: as in `Demonstrations`.
        prompt: template of the questions.
        blind: fraction of verdicts that are random.
        levels: numbers of digits of the sums to be checked; 1 to 3 if None.
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
        steps, computed = trace(a, b, rng, SLIP_BY_LEVEL[level])
        proposed = row["answer"]
        if rng.random() < WRONG:  # a wrong solution is one with slips in it
            while proposed == row["answer"]:
                _, proposed = trace(a, b, rng, 0.5)
        checked, agrees = check(steps, len(computed) > level, proposed)
        verdict = rng.random() < 0.5 if rng.random() < self.blind else agrees
        return verify_row(row, proposed, self.prompt) | {"response": f"{checked}</think>{'Yes' if verdict else 'No'}"}

    def setup(self, stage: str) -> None:
        rng, size = random.Random(derive_seed("verify demonstrations", self.seed)), self.train_size + self.val_size
        solve = arithmetic_demonstrations(size, self.seed)
        rows = [self._question(rng) if i % 3 else solve[i] for i in range(size)]
        self.train_data, self.val_data = rows[self.val_size :], rows[: self.val_size]
