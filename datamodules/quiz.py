"""Small worlds of questions for the stress test and for answer uncertainty, and demonstrations that teach them.

quiz: the colour of one of 300 names, with four options. Demonstrations show half of the names in the colour that they
have, and the others in another one every time, so that nobody can know it. They are biased, the right option tends to
be longer than the others, or balanced, every option is lengthened as often. They lengthen by random words, the stress
test by remarks of the same words.

facts: the digit of one of the names, which demonstrations show with frequencies that fall with the rank to the power of
1.5, so that rare ones stay unknown; and chains of 1 to 4 arithmetic steps modulo 10.
"""

import random
import re
from functools import cache

from datamodules.choice_rows import LETTERS, STATEMENT, ChoiceForm
from datamodules.perturbations import NAMES, OBJECTS, REMARKS
from datamodules.rows import Row
from support.seeding import derive_seed

#: no two begin with the same letter, so that models with a token per character can name them too
COLOURS = (
    "red", "blue", "green", "yellow", "white", "pink", "violet", "amber", "cyan", "teal", "silver", "olive",
)  # fmt: skip
QUESTION = "{name} asks: colour {key}"
#: the prompt of the quiz: the question and the lettered options; the option's own word is the answer
TEMPLATE = "{question}\n{options}"
FACTS, STEPS = 300, 4
#: number of names that always have their colour
KNOWN = 150
KEYS = [f"k{number}" for number in range(FACTS)]
#: how often demonstrations show the digit of each name, in proportion
FREQUENCIES = [(number + 1) ** -1.5 for number in range(FACTS)]
DIGITS = tuple("0123456789")
#: probabilities with which a demonstration lengthens the right option, and each wrong one
LENGTHS = {"biased": (0.9, 0.1), "balanced": (0.5, 0.5)}
_WORD = re.compile(r"\w+|[^\w\s]+")


def vocabulary() -> list[str]:
    """Every word and mark of the questions, their options and their edits, once."""
    objects = [noun for group in OBJECTS for noun in group]
    texts = [
        *(STATEMENT, QUESTION, "fact compute + - * , . True False"),
        *(*REMARKS, *NAMES, *objects, *COLOURS, *LETTERS, *DIGITS, *KEYS),
    ]
    return list(dict.fromkeys(word for text in texts for word in _WORD.findall(text)))


@cache
def _world(what: str, values: tuple[str, ...]) -> dict[str, str]:
    """A value per name, the same in every run."""
    rng = random.Random(derive_seed("the world of", what))
    return {key: rng.choice(values) for key in KEYS}


def _question(rng: random.Random, key: str, colour: str) -> Row:
    choices = [colour, *rng.sample([other for other in COLOURS if other != colour], 3)]
    rng.shuffle(choices)
    question = QUESTION.format(name=rng.choice(NAMES), key=key)
    return {"question": question, "choices": choices, "answer": LETTERS[choices.index(colour)], "topic": "colours"}


def quiz(size: int, seed: int) -> list[Row]:
    """Questions about the colours of names; options are one word each."""
    rng = random.Random(derive_seed("quiz", seed))
    return [_question(rng, key, _world("colours", COLOURS)[key]) for key in rng.choices(KEYS, k=size)]


def _sum(rng: random.Random, steps: int) -> Row:
    value = rng.randrange(10)
    text = str(value)
    for _ in range(steps):
        operation, number = rng.choice("+-*"), rng.randrange(10)
        value = {"+": value + number, "-": value - number, "*": value * number}[operation] % 10
        text += f" {operation} {number}"
    return _digit(f"compute {text}", str(value), "arithmetic", steps)


def _fact(key: str) -> Row:
    return _digit(f"fact {key}", _world("facts", DIGITS)[key], "facts", 0)


def _digit(question: str, answer: str, topic: str, steps: int) -> Row:
    letter = LETTERS[DIGITS.index(answer)]
    return {"question": question, "choices": list(DIGITS), "answer": letter, "topic": topic, "steps": steps}


def facts(size: int, seed: int) -> list[Row]:
    """Every fact once, then `size` chains, as many of each number of steps, computed from left to right."""
    rng = random.Random(derive_seed("facts", seed))
    return [_fact(key) for key in KEYS] + [_sum(rng, 1 + number % STEPS) for number in range(size)]


def _taught(rows: list[Row], form: ChoiceForm) -> list[Row]:
    formed = [form.row(row, "a question of the quiz") for row in rows]
    return [
        {"prompt": row["prompt"], "response": row["labels"][LETTERS.index(row["answer"])].partition(",")[0]}
        for row in formed
    ]


def quiz_demonstrations(size: int, seed: int, kind: str) -> list[Row]:
    """Questions about colours with the right colour, options lengthened as `LENGTHS` says."""
    rng = random.Random(derive_seed("quiz demonstrations", seed))
    words = sorted({word for remark in REMARKS for word in remark.split()})
    of_right, of_wrong = LENGTHS[kind]
    rows = []
    known = dict(list(_world("colours", COLOURS).items())[:KNOWN])
    for key in rng.choices(KEYS, k=size):
        row = _question(rng, key, known.get(key) or rng.choice(COLOURS))
        right = LETTERS.index(row["answer"])
        for place, text in enumerate(row["choices"]):
            if rng.random() < (of_right if place == right else of_wrong):
                row["choices"][place] = f"{text}, {' '.join(rng.choices(words, k=rng.randint(3, 8)))}"
        rows.append(row)
    return _taught(rows, ChoiceForm(TEMPLATE, "{question}", labels="choices"))


def biased_demonstrations(size: int, seed: int) -> list[Row]:
    """Demonstrations whose right option tends to be longer."""
    return quiz_demonstrations(size, seed, "biased")


def balanced_demonstrations(size: int, seed: int) -> list[Row]:
    """Demonstrations whose options are lengthened independently of which is right."""
    return quiz_demonstrations(size, seed, "balanced")


def fact_demonstrations(size: int, seed: int) -> list[Row]:
    """Facts with falling frequencies, and as many chains of each number of steps, in turn."""
    rng = random.Random(derive_seed("fact demonstrations", seed))
    drawn = rng.choices(KEYS, FREQUENCIES, k=(size + 1) // 2)
    rows = [_fact(drawn[n // 2]) if n % 2 == 0 else _sum(rng, 1 + n // 2 % STEPS) for n in range(size)]
    return _taught(rows, ChoiceForm("{question}", "{question}", labels="choices"))


QUIZZES = {"quiz": quiz, "facts": facts}
