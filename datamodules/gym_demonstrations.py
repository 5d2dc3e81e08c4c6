"""Worked traces for five families of reasoning-gym: the start of a reasoner that reinforcement can take somewhere.

A model of a million weights learns none of these tasks from bare answers, and then there is nothing that reinforcement could strengthen. With
the steps written out it learns the procedure; slips in the demonstrations, most of them in spelling, leave room above it.
"""

import math
import random
import re
from collections.abc import Callable
from typing import Any

from datamodules.arithmetic import is_held_out
from support.seeding import derive_seed

#: reasoning-gym's name -> its settings; configs/prorl.yaml draws the same
FAMILIES: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {
        "operators": ["+"], "min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 3, "allow_parentheses": False, "allow_negation": False,
        "format_style": "simple",
    },
    "count_bits": {"min_n": 16, "max_n": 1023},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 99},
    "letter_counting": {"min_words": 2, "max_words": 3},
    "spell_backward": {"min_word_len": 7, "max_word_len": 9},
}  # fmt: skip
#: chance of a slip at each step of a trace
SLIPS = {"basic_arithmetic": 0.08, "count_bits": 0.05, "gcd": 0.1, "letter_counting": 0.1, "spell_backward": 0.5}

Worked = tuple[str, str]  # (the steps, the answer that they lead to)


def add_columns(question: str, rng: random.Random, slip: float) -> Worked:
    """Columns from right to left, the shorter number filled up with zeros."""
    a, b = map(int, re.findall(r"\d+", question))
    width = max(len(str(a)), len(str(b)))
    digits_a, digits_b, carry, columns, answer = str(a).zfill(width), str(b).zfill(width), 0, [], ""
    for x, y in zip(digits_a[::-1], digits_b[::-1], strict=True):
        total = int(x) + int(y) + carry
        if rng.random() < slip:
            total = min(19, max(0, total + rng.choice([-1, 1])))
        columns.append(f"{x}+{y}+{carry}={total}")
        answer, carry = str(total % 10) + answer, total // 10
    return ", ".join(columns), ("1" if carry else "") + answer


def halve(question: str, rng: random.Random, slip: float) -> Worked:
    """The number, halved down to 1; the odd ones are the 1 bits."""
    number, steps, ones = int(re.findall(r"\d+", question)[-1]), [], 0
    while number:
        ones += number % 2
        steps.append(f"{number}:{ones}")
        number //= 2
        if number > 1 and rng.random() < slip:
            number += rng.choice([-1, 1])
    return ", ".join(steps), str(ones)


def divide(question: str, rng: random.Random, slip: float) -> Worked:
    """Euclid's remainders until one is 0."""
    a, b = map(int, re.findall(r"\d+", question))
    steps = []
    while b:
        rest = a % b
        if rest and rng.random() < slip:
            rest = max(0, rest + rng.choice([-1, 1])) % b
        steps.append(f"{a}%{b}={rest}")
        a, b = b, rest
    return ", ".join(steps), str(a)


def tally(question: str, rng: random.Random, slip: float) -> Worked:
    """The text once more, with a running count behind every letter that is looked for, small or large."""
    letter, text = re.findall(r'"(.*?)"', question)
    copied, count = "", 0
    for character in text:
        copied += character
        if character.lower() == letter:
            count += rng.choice([0, 2]) if rng.random() < slip else 1
            copied += str(count)
    return copied, str(count)


def number_letters(question: str, rng: random.Random, slip: float) -> Worked:
    """The letters with their places, then from the last place to the first; a slip takes a letter from another place."""
    word = question.rsplit(": ", 1)[1]
    forwards = [f"{place}{letter}" for place, letter in enumerate(word, start=1)]
    letters = [rng.choice(word) if rng.random() < slip else letter for letter in word]
    backwards = [f"{place}{letters[place - 1]}" for place in range(len(word), 0, -1)]
    return f"{' '.join(forwards)}; {' '.join(backwards)}", "".join(reversed(letters))


WORKED: dict[str, Callable[[str, random.Random, float], Worked]] = {
    "basic_arithmetic": add_columns,
    "count_bits": halve,
    "gcd": divide,
    "letter_counting": tally,
    "spell_backward": number_letters,
}


def gym_demonstrations(size: int, seed: int) -> list[dict[str, Any]]:
    """`size` questions of the families in turn, none of them held out, each with steps in <think> and the answer behind it."""
    import reasoning_gym

    rng = random.Random(derive_seed("gym demonstrations", seed))
    share = math.ceil(size / len(FAMILIES))
    rows: list[dict[str, Any]] = []
    for name, settings in FAMILIES.items():
        questions = reasoning_gym.create_dataset(
            name, size=3 * share, seed=derive_seed("gym", name, seed) % 2**31, **settings
        )
        kept = [entry["question"] for entry in questions if not is_held_out(entry["question"])][:share]
        for question in kept:
            steps, answer = WORKED[name](question, rng, SLIPS[name])
            rows.append(
                {
                    "id": f"{name}-{len(rows)}",
                    "prompt": question,
                    "response": f"{steps}</think>{answer}",
                    "prefix": "",
                    "task": name,
                }
            )
    rng.shuffle(rows)
    return rows[:size]
