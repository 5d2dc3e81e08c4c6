"""Critique fine-tuning (arXiv 2506.03295): prompts, and running sums as a toy with a rule that solves and critiques.

A problem is a sheet to fill in, such as a3 b4+_=_ c8+_=_ d2+_=_ for (3 + 4 + 8 + 2) mod 10: b4+3=7 c8+7=5 d2+5=7. A
wrong step leads to a partial sum that the right solution never has, and the critique says what follows from it. So the
critiques of many solutions of one problem show many additions, and one solution only a few.
"""

import random
from typing import Any

from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError
from support.papers import Paper
from support.seeding import derive_seed

#: prompt of the student
QUESTION = """Problem:
<problem>

Solution:
<solution>

Critique this solution."""

#: prompt of a teacher
INSTRUCTION = """You are an expert who reviews solutions. Here are a problem and a proposed solution.

Problem:
<problem>

Solution:
<solution>

Name the concepts that the problem is about, then check the solution step by step. If it is wrong, say where its errors
are and give the corrected final answer in \\boxed{}. End with one line, "Conclusion: right" or "Conclusion: wrong"."""

#: the words of the conclusion
WORDS = ("right", "wrong")
#: question of the toy
TOY_QUESTION = "<problem> <solution>?"
#: names of the terms of a problem
LABELS = "abcdef"
#: probability of a slip per step in solutions, and per result in what the start is trained on
SLIP, START_SLIP = 0.3, 0.3
#: fraction of random verdicts in what the start is trained on
BLIND = 0.25


def shown(completion: str) -> str:
    """A completion as a critic sees it: without the tags of the reasoning."""
    return completion.replace("<think>", "").replace("</think>", "\n").strip()


def _slipped(value: int, rng: random.Random, slip: float) -> int:
    return (value + rng.randint(1, 9)) % 10 if rng.random() < slip else value


def draw_problem(rng: random.Random, held_out: bool = False) -> Row:
    """A running sum of six digits, in training or held out by a hash of its text (one in five)."""
    while True:
        digits = [rng.randrange(10) for _ in LABELS]
        blanks = [f"{label}{digit}+_=_" for label, digit in zip(LABELS[1:], digits[1:], strict=True)]
        prompt = " ".join([f"{LABELS[0]}{digits[0]}", *blanks])
        if (derive_seed("running sums", prompt) % 5 == 0) == held_out:
            answer = str(sum(digits) % 10)
            return {"id": prompt, "prompt": prompt, "answer": answer, "task": "running sum"}


def solution(row: Row, rng: random.Random, slip: float | None = None) -> str:
    """A solution of a running sum. Steps are separated by a space or a comma.

    Args:
        row: with `prompt`.
        slip: probability that a step is wrong; 0 or `SLIP` at random if None.
    """
    slip = rng.choice([0.0, SLIP]) if slip is None else slip
    digits = [int(term[1]) for term in row["prompt"].split()]
    value, text = digits[0], ""
    for label, digit in zip(LABELS[1:], digits[1:], strict=True):
        result = _slipped((digit + value) % 10, rng, slip)
        text += f"{rng.choice(' ,') if text else ''}{label}{digit}+{value}={result}"
        value = result
    return f"{text}</think>{value}"


def critique(row: Row, rng: random.Random, slip: float = 0.0) -> str:
    """The critique of the `solution` of a running sum; "" for a solution that is not worked in steps.

    Each step is computed again from the solution's own partial sum, and ends with "." if the solution agrees, else with
    "!". The verdict is Yes if all steps agree.

    Args:
        row: with `solution`, as `shown` gives it.
        slip: probability that a result of the critique is wrong.
    """
    steps, parts = row["solution"].partition("\n")[0].replace(",", " ").split(), []
    for step in steps:
        terms, _, proposed = step.partition("=")
        digits = terms[1::2]
        if len(digits) != 2 or not (digits + proposed).isdecimal():
            return ""
        result = _slipped(sum(map(int, digits)) % 10, rng, slip)
        parts.append(f"{terms}={result}{'.' if str(result) == proposed else '!'}")
    if len(parts) != len(LABELS) - 1:
        return ""
    return f"{''.join(parts)}</think>{'No' if any(part.endswith('!') for part in parts) else 'Yes'}"


def running_sum_demonstrations(size: int, seed: int) -> list[Row]:
    """Rows for the start of the toy: half solutions, half critiques, with slips in both and some random verdicts."""
    rng, rows = random.Random(derive_seed("running sum demonstrations", seed)), []
    for number in range(size):
        row = draw_problem(rng)
        if number % 2:
            rows.append(row | {"response": solution(row, rng, START_SLIP)})
            continue
        text = shown(solution(row, rng))
        response = critique({"solution": text}, rng, START_SLIP)
        if rng.random() < BLIND:
            response = response.rpartition("</think>")[0] + f"</think>{rng.choice(['Yes', 'No'])}"
        prompt = TOY_QUESTION.replace("<problem>", row["prompt"]).replace("<solution>", text)
        rows.append({"id": str(number), "prompt": prompt, "response": response})
    return rows


class RunningSumPrompts(PromptData):
    """Prompt groups of running sums.

    Args:
        train_size, val_size: numbers of training and held-out problems.
        seed: seed of the problems and of their order; the run's seed if None.
    """

    def __init__(self, train_size: int = 1024, val_size: int = 100, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        if train_size < 1 or val_size < 0:
            raise ConfigError(
                f"data.train_size is {train_size} and data.val_size {val_size}; set them to at least 1 and 0."
            )
        self.train_size, self.val_size = train_size, val_size

    def _drawn(self, count: int, held_out: bool) -> list[dict[str, Any]]:
        rng = random.Random(derive_seed("running sum prompts", self.seed, held_out))
        return [draw_problem(rng, held_out) for _ in range(count)]

    def train_rows(self) -> list[Row]:
        return self._drawn(self.train_size, False)

    def val_rows(self) -> list[Row]:
        return self._drawn(self.val_size, True)


PAPER = Paper(
    name="critique",
    title="One-problem critique fine-tuning",
    arxiv="2506.03295",
    idea="SFT on critiques of many solutions of one problem, the checkpoint chosen on other problems",
    classes=("lightning_modules.ScoredSFT", "datamodules.ScoredDemonstrations"),
    configs=("critique",),
    effect="",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
