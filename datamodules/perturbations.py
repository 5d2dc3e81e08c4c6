"""Content-preserving edits of multiple-choice rows (arXiv 2502.12459), as pure functions.

Each takes a row of `datamodules.choice_rows.choice_row` and a seed and returns the edited rows: one, several (one per
statement), or none where the edit does not apply. The order of the options never changes. An option is lengthened by
remarks about its own wording, which make no statement about the subject, and is lengthened alike in every condition.
"""

import random
import re
from collections.abc import Callable

from datamodules.choice_rows import LETTERS
from datamodules.rows import Row
from support.seeding import derive_seed

Perturbation = Callable[[Row, int], list[Row]]
REMARKS = (
    "as this option says",
    "in the words of this option",
    "to put it in these words",
    "which is what this option says",
    "as it is written here",
    "to say it in full",
    "and so this option reads",
    "in just these words",
)
#: lengthened options have at least this many times the characters of the longest option of the row
RATIO = 1.5
NAMES = (
    "Alice", "Anna", "Ben", "Bob", "Carl", "Carol", "Clara", "Daniel", "David", "Emma", "Eric", "Hannah",
    "Jack", "Jane", "John", "Julia", "Karen", "Kate", "Laura", "Linda", "Lisa", "Maria", "Mary", "Michael",
    "Mike", "Nina", "Olivia", "Paul", "Peter", "Sally", "Sam", "Sarah", "Simon", "Sophie", "Susan", "Tim", "Tom", "Zoe",
)  # fmt: skip
#: objects that may stand for each other, singular, words with one meaning; within a group all begin with a vowel, or
#: all do not
OBJECTS = (
    ("pencil", "marker", "notebook", "sticker", "crayon"),
    ("banana", "pear", "peach", "lemon", "mango"),
    ("apple", "apricot"),
    ("kite", "doll", "puzzle", "drum"),
    ("car", "truck", "van"),
    ("shirt", "jacket", "scarf", "sweater"),
    ("cookie", "muffin", "sandwich", "pizza", "cupcake", "pancake"),
)


def _random(row: Row, seed: int, *what: int | str) -> random.Random:
    return random.Random(derive_seed("perturbation", seed, str(row.get("id")), *what))


def lengthened(text: str, characters: int, rng: random.Random) -> str:
    """The text with remarks about its wording, at least one, until it has this many characters."""
    end = text[-1:] if text.endswith((".", "!", "?")) else ""
    longer, remarks = text[: len(text) - len(end)].rstrip(), list(REMARKS)
    rng.shuffle(remarks)
    for number in range(max(1, characters)):
        longer += f", {remarks[number % len(remarks)]}"
        if len(longer) + len(end) >= characters:
            break
    return longer + end


def _with_longer(row: Row, seed: int, places: list[int]) -> Row:
    characters = round(RATIO * max(len(text) for text in row["choices"]))
    choices = [
        lengthened(text, characters, _random(row, seed, "longer", place)) if place in places else text
        for place, text in enumerate(row["choices"])
    ]
    return row | {"choices": choices}


def longer_right(row: Row, seed: int) -> list[Row]:
    """The right option becomes the longest."""
    return [_with_longer(row, seed, [LETTERS.index(row["answer"])])]


def longer_wrong(row: Row, seed: int) -> list[Row]:
    """All wrong options become longer than the right one."""
    right = LETTERS.index(row["answer"])
    return [_with_longer(row, seed, [place for place in range(len(row["choices"])) if place != right])]


def longer_all(row: Row, seed: int) -> list[Row]:
    """All options become longer: the control, which tells the effect of length from that of the remarks."""
    return [_with_longer(row, seed, list(range(len(row["choices"]))))]


def true_false(row: Row, seed: int) -> list[Row]:
    """One statement per option, which is true or false."""
    right = LETTERS.index(row["answer"])
    return [
        row
        | {
            "statement": text,
            "choices": ["True", "False"],
            "labels": ["True", "False"],
            "answer": "A" if place == right else "B",
        }
        for place, text in enumerate(row["choices"])
    ]


def swapped_nouns(row: Row, seed: int) -> list[Row]:
    """First names, and objects that no option mentions, are replaced by others that the row does not have.

    A name beside another capitalised word, such as a surname, belongs to an entity and stays. The same noun gets the
    same replacement everywhere.
    """
    rng, texts = _random(row, seed, "nouns"), [row["question"], *row["choices"]]
    whole, options = "\n".join(texts), " ".join(row["choices"]).lower()
    changes = _new_names(whole, rng) | _new_objects(row["question"], options, whole.lower(), rng)
    if not changes:
        return []
    pattern = re.compile(rf"(?<![\w\\-])(?:{'|'.join(map(re.escape, changes))})(?![\w-])")
    question, *choices = (pattern.sub(lambda match: changes[match[0]], text) for text in texts)
    return [row | {"question": question, "choices": choices}]


def _new_names(whole: str, rng: random.Random) -> dict[str, str]:
    present = [name for name in NAMES if re.search(rf"\b{name}\b", whole)]
    free = [name for name in NAMES if name not in present]
    entities = {
        name
        for name in present
        if re.search(rf"\b{name}(?: [A-Z]\w|-)|[A-Za-z]-{name}\b|(?<![.?!:])[^\S\n][A-Z][\w.]* {name}\b", whole)
    }
    movable = [name for name in present if name not in entities]
    return dict(zip(movable, rng.sample(free, min(len(free), len(movable))), strict=False))


def _new_objects(question: str, options: str, whole: str, rng: random.Random) -> dict[str, str]:
    changes: dict[str, str] = {}
    for group in OBJECTS:
        present = [noun for noun in group if re.search(rf"(?<![\w\\-]){noun}(?:e?s)?(?![\w-])", whole)]
        free = [noun for noun in group if noun not in present]
        movable = [noun for noun in present if noun not in options and _plural(noun) not in options]
        for noun, other in zip(movable, rng.sample(free, min(len(free), len(movable))), strict=False):
            for old, new in ((noun, other), (_plural(noun), _plural(other))):
                if re.search(rf"(?<![\w\\-]){old}(?![\w-])", question):
                    changes[old] = new
    return changes


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("ch") else "s")


CONDITIONS: dict[str, Perturbation] = {
    "longer_right": longer_right,
    "longer_wrong": longer_wrong,
    "longer_all": longer_all,
    "true_false": true_false,
    "swapped_nouns": swapped_nouns,
}
