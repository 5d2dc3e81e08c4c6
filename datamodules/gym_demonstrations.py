"""Worked traces for five families of reasoning-gym, to train an initial policy that reinforcement can improve.

A model of a million weights learns none of these tasks from bare answers, and then there is nothing for reinforcement
to strengthen. With the steps written out it learns the procedure; slips in the demonstrations, most of them in
spelling, leave room for improvement.
"""

import math
import random
import re
from collections.abc import Callable
from typing import Any

from datamodules.arithmetic import is_held_out, trace
from support.seeding import derive_seed

#: reasoning-gym's name -> its settings; configs/prorl.yaml uses the same
FAMILIES: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {
        "operators": ["+"], "min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 3,
        "allow_parentheses": False, "allow_negation": False, "format_style": "simple",
    },
    "count_bits": {"min_n": 16, "max_n": 1023},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 99},
    "letter_counting": {"min_words": 2, "max_words": 3},
    "spell_backward": {"min_word_len": 7, "max_word_len": 9},
}  # fmt: skip
#: family -> probability of a slip at each step of a trace
SLIPS = {"basic_arithmetic": 0.08, "count_bits": 0.05, "gcd": 0.1, "letter_counting": 0.1, "spell_backward": 0.5}

Worked = tuple[str, str]  # (the steps, the answer that they give)


def add_columns(question: str, rng: random.Random, slip: float) -> Worked:
    """Add two numbers column by column from right to left, the shorter one padded with zeros."""
    a, b = map(int, re.findall(r"\d+", question))
    return trace(a, b, rng, slip)


def halve(question: str, rng: random.Random, slip: float) -> Worked:
    """Count the 1 bits of a number by halving it down to 1: every odd intermediate number is a 1 bit."""
    number, steps, ones = int(re.findall(r"\d+", question)[-1]), [], 0
    while number:
        ones += number % 2
        steps.append(f"{number}:{ones}")
        number //= 2
        if number > 1 and rng.random() < slip:
            number += rng.choice([-1, 1])
    return ", ".join(steps), str(ones)


def divide(question: str, rng: random.Random, slip: float) -> Worked:
    """Compute a greatest common divisor by Euclid's remainders until one is 0."""
    a, b = map(int, re.findall(r"\d+", question))
    steps = []
    while b:
        remainder = a % b
        if remainder and rng.random() < slip:
            remainder = max(0, remainder + rng.choice([-1, 1])) % b
        steps.append(f"{a}%{b}={remainder}")
        a, b = b, remainder
    return ", ".join(steps), str(a)


def tally(question: str, rng: random.Random, slip: float) -> Worked:
    """Copy the text, with a running count after every occurrence of the letter in question, in lower or upper case."""
    letter, text = re.findall(r'"(.*?)"', question)
    copied, count = "", 0
    for character in text:
        copied += character
        if character.lower() == letter:
            count += rng.choice([0, 2]) if rng.random() < slip else 1
            copied += str(count)
    return copied, str(count)


def number_letters(question: str, rng: random.Random, slip: float) -> Worked:
    """Spell a word with numbered letters, forwards and then backwards; a slip takes a letter from another position."""
    word = question.rsplit(": ", 1)[1]
    forwards = [f"{position}{letter}" for position, letter in enumerate(word, start=1)]
    letters = [rng.choice(word) if rng.random() < slip else letter for letter in word]
    backwards = [f"{position}{letters[position - 1]}" for position in range(len(word), 0, -1)]
    return f"{' '.join(forwards)}; {' '.join(backwards)}", "".join(reversed(letters))


WORKED: dict[str, Callable[[str, random.Random, float], Worked]] = {
    "basic_arithmetic": add_columns,
    "count_bits": halve,
    "gcd": divide,
    "letter_counting": tally,
    "spell_backward": number_letters,
}


def gym_demonstrations(size: int, seed: int) -> list[dict[str, Any]]:
    """`size` questions, the same number per family, none of them held out, each with steps in <think> and the answer
    after it."""
    import reasoning_gym

    rng = random.Random(derive_seed("gym demonstrations", seed))
    per_family = math.ceil(size / len(FAMILIES))
    rows: list[dict[str, Any]] = []
    for name, settings in FAMILIES.items():
        entries = reasoning_gym.create_dataset(
            name, size=3 * per_family, seed=derive_seed("gym", name, seed) % 2**31, **settings
        )
        questions = [entry["question"] for entry in entries if not is_held_out(entry["question"])][:per_family]
        for question in questions:
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
