"""Texts to be written as JSON objects of a given schema (ThinkJSON, arXiv 2502.14905).

The object is drawn first, and the text is made from it.

    python main.py fit --config configs/think_json.yaml
"""

import json
import random
from typing import Any

from datamodules.arithmetic import is_held_out
from datamodules.demonstrations import Demonstrations
from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError
from support.seeding import derive_seed

NAMES = "ann bob cy dan eve flo gus hal ida jo kit leo mia ned ola pam".split()
CITIES = "rome oslo lima bern cork nice york kiel pisa ghent".split()
TYPES = {"name": "string", "age": "integer", "city": "string"}
BLANKS = {"string": "", "integer": 0}
PROMPT = (
    "Write this text as a JSON object of the given schema. Reason between <think> and </think>, then give the object "
    "between <answer> and </answer>.\n\nText: <text>\nSchema: <schema>"
)


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def draw_row(rng: random.Random, keys: int, held_out: bool, prompt: str) -> dict[str, Any]:
    """A row with one text, held out or not as asked, and the object that it was made from; a hash of the text decides
    whether it is held out."""
    while True:
        person = {"name": rng.choice(NAMES), "age": rng.randint(10, 99), "city": rng.choice(CITIES)}
        sentence = "{name} from {city} is {age}" if rng.random() < 0.5 else "{name} is {age}, from {city}"
        text = sentence.format(**person)
        if is_held_out(text) == held_out:
            break
    schema_keys = rng.sample(list(TYPES), keys)
    blank = {key: BLANKS[TYPES[key]] for key in schema_keys}
    schema = {
        "type": "object",
        "properties": {key: {"type": TYPES[key]} for key in schema_keys},
        "required": schema_keys,
        "additionalProperties": False,
    }
    return {
        "id": f"{text} {','.join(schema_keys)}",
        "prompt": prompt.replace("<text>", text).replace("<schema>", compact(blank)),
        "answer": compact({key: person[key] for key in schema_keys}),
        "schema": compact(schema),
        "task": "schema",
    }


def check_prompt(prompt: str, keys: int) -> None:
    """Raise ConfigError for a prompt without text or schema, or for an impossible number of keys."""
    if "<text>" not in prompt or "<schema>" not in prompt:
        raise ConfigError("data.prompt must contain <text> and <schema>, which are replaced; add what is missing.")
    if not 1 <= keys <= len(TYPES):
        raise ConfigError(
            f"data.keys is {keys}; a schema has some of the keys {', '.join(TYPES)}, so it must be 1 to {len(TYPES)}."
        )


class SchemaPrompts(PromptData):
    """Prompt groups of a text about a person and a blank schema that asks for some of its facts.

    Args:
        keys: number of keys of a schema, drawn from name, age and city in any order.
        train_size: number of training texts per epoch.
        val_size: number of held-out texts.
        prompt: the text in which <text> and <schema> are replaced.
        seed: seed of the texts and of their order; the run's seed if None.
    """

    def __init__(
        self, keys: int = 2, train_size: int = 2000, val_size: int = 100, prompt: str = PROMPT, seed: int | None = None
    ) -> None:
        super().__init__(seed=seed)
        check_prompt(prompt, keys)
        self.keys, self.train_size, self.val_size, self.prompt = keys, train_size, val_size, prompt

    def _draw(self, size: int, held_out: bool) -> list[dict[str, Any]]:
        rng = random.Random(derive_seed("schemas", self.seed, held_out))
        return [draw_row(rng, self.keys, held_out, self.prompt) for _ in range(size)]

    def train_rows(self) -> list[Row]:
        return self._draw(self.train_size, held_out=False)

    def val_rows(self) -> list[Row]:
        return self._draw(self.val_size, held_out=True)


def careless(answer: str, rng: random.Random) -> str:
    """The text of an object with one of the mistakes that people make in JSON."""
    return rng.choice(
        [
            answer[:-1],
            answer.replace('"', "'"),
            answer.replace('":', '" '),
            answer[:-1] + ",}",
            answer.replace('"', "", 1),
            answer + "}",
        ]
    )


class SchemaDemonstrations(Demonstrations):
    """Training texts with an object that is often invalid JSON and sometimes wrong, for the miniature's initial policy.

    Args:
        batch_size, train_size, val_size, seed: as in `Demonstrations`.
        keys, prompt: as in `SchemaPrompts`.
        broken: fraction of objects with a syntax error.
        wrong: fraction of rows whose object has random values of another one.
        untagged: fraction of rows without <answer> tags.
    """

    def __init__(
        self,
        batch_size: int = 64,
        train_size: int = 20_000,
        val_size: int = 256,
        keys: int = 2,
        prompt: str = PROMPT,
        broken: float = 0.8,
        wrong: float = 0.2,
        untagged: float = 0.3,
        seed: int | None = None,
    ) -> None:
        super().__init__("think-json", batch_size, train_size, val_size, seed=seed)
        check_prompt(prompt, keys)
        self.keys, self.prompt, self.broken, self.wrong, self.untagged = keys, prompt, broken, wrong, untagged

    def _row(self, rng: random.Random) -> dict[str, Any]:
        row = draw_row(rng, self.keys, False, self.prompt)
        answer = row["answer"]
        if rng.random() < self.wrong:
            random_values = {"string": rng.choice(NAMES + CITIES), "integer": rng.randint(10, 99)}
            answer = compact({key: random_values[TYPES[key]] for key in json.loads(answer)})
        if rng.random() < self.broken:
            answer = careless(answer, rng)
        if rng.random() >= self.untagged:
            answer = f"<answer>{answer}</answer>"
        return row | {"response": f"</think>{answer}"}

    def setup(self, stage: str) -> None:
        rng = random.Random(derive_seed("schema demonstrations", self.seed))
        rows = [self._row(rng) for _ in range(self.train_size + self.val_size)]
        self.train_data, self.val_data = rows[self.val_size :], rows[: self.val_size]
