"""Small functions described in words, with an oracle, an input generator and a solver that makes mistakes.

The miniature of rStar-Coder (arXiv 2505.21297). "times 3, plus 4, odd" asks for a function of a whole number:

    def f(x):
     x=x*3
     x=x+4
     return x%2==1
"""

import random
from typing import Any

from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError
from support.papers import Paper
from support.seeding import derive_seed

#: step -> (right expressions of x and a digit D, wrong ones); the last wrong ones differ on few inputs only
STEPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plus": (("x+D", "D+x"), ("x-D", "x+D+1", "x+D if x>0 else x")),
    "minus": (("x-D", "-D+x"), ("D-x", "x-D-1", "x-D if x>0 else x")),
    "times": (("x*D", "D*x"), ("x+D", "x*D+1", "abs(x)*D")),
    "mod": (("x%D",), ("x//D", "abs(x)%D", "x-x%D")),
    "half": (("x//2", "x>>1"), ("x*2", "int(x/2)", "(x+1)//2")),
    "abs": (("abs(x)", "x if x>0 else -x"), ("x", "-x", "x*x")),
    "cap": (("min(x,D)", "x if x<D else D"), ("max(x,D)", "D", "x if x<D else x-D")),
}
#: yes-or-no steps, which only stand at the end
TESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "odd": (("x%2==1", "x&1==1"), ("x%2==0", "x%2==1 and x>0", "x>0")),
    "over": (("x>D", "D<x"), ("x<D", "x>=D", "abs(x)>D")),
    "divides": (("x%D==0",), ("x//D==0", "x%D==0 and x>0", "x%D==1")),
}
#: steps with a digit -> its range
DIGITS = {"mod": (2, 9), "times": (2, 9), "divides": (2, 9)} | dict.fromkeys(("cap", "plus", "minus", "over"), (1, 9))
GENERATOR = """import random
def generate(scale, seed):
    return [random.Random(f"{scale} {seed}").randint(-3 * scale, 3 * scale)]
def valid(x):
    return type(x) is int and abs(x) <= 3 * 10**5
"""
ENTRY = "f"
#: a program of the family fails or hangs instead of a wrong result, in this share of the mistakes
BROKEN = 0.1


def steps_of(prompt: str) -> list[tuple[str, int]]:
    """(step, digit) of a prompt; the digit is 0 for a step without one."""
    parts = [part.split() for part in prompt.split(", ")]
    return [(part[0], int(part[1]) if len(part) > 1 else 0) for part in parts]


def code_of_steps(expressions: list[str]) -> str:
    """The function that evaluates expressions of x one after another."""
    *before, last = expressions
    return "".join([f"def {ENTRY}(x):\n", *(f" x={each}\n" for each in before), f" return {last}"])


def expressions(step: str, digit: int, right: bool) -> list[str]:
    """The right or the wrong ways to write a step."""
    listed = (STEPS | TESTS)[step][0 if right else 1]
    return [each.replace("D", str(digit)) if step in DIGITS else each for each in listed]


def oracle(prompt: str) -> str:
    """A right program for a prompt."""
    return code_of_steps([expressions(step, digit, True)[0] for step, digit in steps_of(prompt)])


def solution(row: Row, rng: random.Random, mistakes: float = 0.3) -> str:
    """A solution that a solver writes for a problem; its code is behind an empty reasoning.

    Args:
        row: with `prompt`.
        mistakes: probability that one step is wrong. Half of the mistakes are the problem's usual one, which is the
            same for all solvers.
    """
    steps = steps_of(row["prompt"])
    written = [rng.choice(expressions(step, digit, True)) for step, digit in steps]
    if rng.random() < mistakes:
        usual = random.Random(derive_seed("usual mistake", row["prompt"]))
        chooser = usual if rng.random() < 0.5 else rng
        place = chooser.randrange(len(steps))
        written[place] = chooser.choice(expressions(*steps[place], right=False))
        if chooser is rng and rng.random() < BROKEN:
            written[place] = rng.choice(["x/0", "f(x)"])
    return f"</think>{code_of_steps(written)}"


def likely_wrong(row: Row, rng: random.Random) -> str:
    """A solution by a solver that is wrong in six of ten."""
    return solution(row, rng, 0.6)


def draw_prompts(count: int, seed: int, held_out: bool, tests: float) -> list[str]:
    """Different prompts of two or three steps.

    Args:
        tests: fraction of the problems that end with a yes-or-no step.
    """
    rng, prompts = random.Random(derive_seed("word programs", seed, held_out)), dict[str, None]()
    tries = 0
    while len(prompts) < count:
        names = [rng.choice(list(STEPS)) for _ in range(rng.choice((1, 2)))]
        names.append(rng.choice(list(TESTS if rng.random() < tests else STEPS)))
        parts = [f"{name} {rng.randint(*DIGITS[name])}" if name in DIGITS else name for name in names]
        prompt = ", ".join(parts)
        if (derive_seed("held-out word program", prompt) % 5 == 0) == held_out:
            prompts[prompt] = None
        tries += 1
        if tries > 100 * count + 10_000:
            raise ConfigError(f"there are no {count} different problems (only {len(prompts)}); lower the size.")
    return list(prompts)


class WordPrograms(PromptData):
    """Problems of small functions: training rows for `assets/rstar_coder.py`, held-out rows with tests by the oracle.

    Args:
        train_size, val_size: numbers of problems.
        seeds: fraction of the training problems that have an oracle.
        tests: fraction of the problems that end with a yes-or-no step.
        seed: seed of the problems and of their order; the run's seed if None.
    """

    def __init__(
        self,
        train_size: int = 400,
        val_size: int = 100,
        seeds: float = 0.1,
        tests: float = 0.3,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed=seed)
        if train_size < 1 or val_size < 0:
            raise ConfigError(
                f"data.train_size is {train_size} and data.val_size {val_size}; set them to at least 1 and 0."
            )
        for name, fraction in (("seeds", seeds), ("tests", tests)):
            if not 0 <= fraction <= 1:
                raise ConfigError(f"data.{name} is {fraction}; it is a fraction from 0 to 1.")
        self.train_size, self.val_size, self.seeds, self.tests = train_size, val_size, seeds, tests

    def train_rows(self) -> list[Row]:
        rows: list[Row] = []
        for number, prompt in enumerate(draw_prompts(self.train_size, self.seed, False, self.tests)):
            row: Row = {"id": f"word-{number}", "prompt": prompt, "entry_point": ENTRY, "generator": GENERATOR}
            is_seed = derive_seed("seed problem", prompt) % 1000 < 1000 * self.seeds
            rows.append(row | ({"oracle": oracle(prompt)} if is_seed else {}))
        return rows

    def val_rows(self) -> list[Row]:
        rows = []
        for number, prompt in enumerate(draw_prompts(self.val_size, self.seed, True, self.tests)):
            names: dict[str, Any] = {}
            exec(oracle(prompt), names)
            inputs = [*range(-12, 13), -9999, 9999, -100000, 100000]
            tests = "".join(f"assert {ENTRY}({x}) == {names[ENTRY](x)!r}\n" for x in inputs)
            rows.append({"id": f"held-out-{number}", "prompt": prompt, "entry_point": ENTRY, "tests": tests})
        return rows


PAPER = Paper(
    name="rstar_coder",
    title="rStar-Coder",
    arxiv="2505.21297",
    idea="verified training data for code: inputs by generators, outputs by programs that agree, then SFT",
    classes=("rewards.CodeTests", "datamodules.WordPrograms", "lightning_modules.ScoredSFT"),
    configs=("rstar_coder",),
    effect="",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
