"""Critiques of solutions (critique fine-tuning, arXiv 2506.03295): prompts, and a rule that solves and critiques sums.

The rule is the teacher of the miniature. Its critique works the sum out, compares it with the solution's result digit by
digit, and ends with a verdict.
"""

import random
import re
from typing import Any

from datamodules.arithmetic import trace
from datamodules.self_verify import check
from support.papers import Paper

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
#: probability of a slip in a column of a wrong solution
SLIP = 0.25


def shown(completion: str) -> str:
    """A completion as a critic sees it: without the tags of the reasoning."""
    return completion.replace("<think>", "").replace("</think>", "\n").strip()


def _terms(problem: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", problem)[:2]]


def _swapped(steps: str, rng: random.Random) -> str:
    """A worked sum with the digits of some columns in the other order."""
    columns = (column.split("+", 2) for column in steps.split(", "))
    return ", ".join("+".join([y, x, rest] if rng.random() < 0.5 else [x, y, rest]) for x, y, rest in columns)


def sum_solution(row: dict[str, Any], rng: random.Random) -> str:
    """A solution of the sum in `prompt`: half of them have slips. Columns have their two digits in either order."""
    a, b = _terms(row["prompt"])
    steps, answer = trace(a, b, rng, SLIP if rng.random() < 0.5 else 0.0)
    return f"{_swapped(steps, rng)}</think>{answer}"


def sum_critique(row: dict[str, Any], rng: random.Random) -> str:
    """The critique of the `solution` of the sum in `problem`: its result digit by digit, see `self_verify.check`.

    "" for a solution without a result.
    """
    a, b = _terms(row["problem"])
    proposed = row["solution"].rpartition("\n")[2].strip()
    if not proposed.isdecimal():
        return ""
    steps, answer = trace(a, b, rng)
    text, agrees = check(steps, len(answer) > len(steps.split(", ")), proposed)
    return f"{text}</think>{'Yes' if agrees else 'No'}"


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
