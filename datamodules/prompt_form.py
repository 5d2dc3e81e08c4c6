"""From the columns of a data set to prompts and answers: template, system prompt, worked examples, answers in texts."""

import random
import re
from dataclasses import dataclass
from string import Formatter

from datamodules.rows import Row
from support.errors import ConfigError
from support.prompt_identity import check_prompt
from support.seeding import derive_seed


@dataclass
class FewShot:
    """Worked examples before every prompt. They are drawn from the training rows by the seed and not trained on.

    Args:
        count: number of examples; the same ones for all prompts.
        response: template of an example's response; by default the column `solution`, or `answer` without one.
        as_turns: as earlier turns of a chat; otherwise as text before the prompt, as models without a chat template
            need it.
    """

    count: int = 0
    response: str | None = None
    as_turns: bool = True


class PromptForm:
    """Makes `prompt` and `answer` from a data set's columns.

    Args:
        template: text of the user's turn with columns in braces, such as "{question}\\nAnswer in \\\\boxed{{}}."; the
            column `prompt` as it is if None.
        system: system prompt of the rows that have none.
        answer_pattern: regular expression with one group, which is the answer; its last match in the column `answer`
            counts. The text before it becomes the column `solution`, unless the data have such a column.
        where: name of the data module's setting for messages, such as "data".

    Raises:
        ConfigError: for a template or a pattern that cannot be used, and for a row without one of its columns or
            without a match.
    """

    def __init__(
        self,
        template: str | None = None,
        system: str | None = None,
        answer_pattern: str | None = None,
        where: str = "data",
    ) -> None:
        self.template = Template(template, f"{where}.template") if template is not None else None
        self.system, self.answer_pattern, self.where = system, _compiled(answer_pattern, where), where

    def rows(self, rows: list[Row], source: str) -> list[Row]:
        """The rows with their prompts and answers.

        Args:
            source: name of the data for messages.
        """
        return [self._row(row, f"row {number} of {source!r}") for number, row in enumerate(rows)]

    def _row(self, row: Row, where: str) -> Row:
        if self.template is not None:
            row = row | {"prompt": self.template.text(row, where)}
        if self.answer_pattern is not None:
            row = self._extracted(row, self.answer_pattern, where)
        if row.get("prompt"):
            check_prompt(row["prompt"], where)
        if self.system is not None and row.get("prompt"):
            messages = as_messages(row["prompt"])
            if messages[0].get("role") not in ("system", "developer"):
                row = row | {"prompt": [{"role": "system", "content": self.system}, *messages]}
        return row

    def _extracted(self, row: Row, pattern: re.Pattern[str], where: str) -> Row:
        text = row.get("answer")
        matches = list(pattern.finditer(text)) if isinstance(text, str) else []
        if not matches or matches[-1][1] is None:
            raise ConfigError(
                f"{where} has the answer {str(text)[-60:]!r}, in which {self.where}.answer_pattern "
                f"{pattern.pattern!r} matches nothing; correct the pattern, the row, or the column that "
                f"{self.where}.columns maps to `answer`."
            )
        match = matches[-1]
        return {"solution": match.string[: match.start()].strip()} | row | {"answer": match[1].strip()}


class Template:
    """A text with columns of a row in braces; {{ and }} are braces of the text.

    Args:
        text: the template.
        where: name of the setting for messages.
    """

    def __init__(self, text: str, where: str) -> None:
        try:
            parts = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(
                f"{where} is {text!r}: {error}; write {{{{ and }}}} for braces that stand in the text."
            ) from error
        for _, name, form, conversion in parts:
            if name is not None and (not name or form or conversion):
                raise ConfigError(
                    f"{where} is {text!r}; braces hold the name of a column and nothing else. Write {{{{ and }}}} for "
                    "braces that stand in the text, as in \\boxed{{}}."
                )
        self.parts, self.where = [(before, name) for before, name, _, _ in parts], where

    def text(self, row: Row, where: str) -> str:
        """The text for a row; numbers are written as Python writes them."""
        return "".join(before + ("" if name is None else self._cell(row, name, where)) for before, name in self.parts)

    def _cell(self, row: Row, name: str, where: str) -> str:
        if row.get(name) is None:
            lacks = "nothing in it" if name in row else "no such column"
            raise ConfigError(
                f"{self.where} names the column {name!r}, but {where} has {lacks}; its columns are {sorted(row)}."
            )
        return str(row[name])


def _compiled(pattern: str | None, where: str) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}.answer_pattern is {pattern!r}, no regular expression: {error}.") from error
    if compiled.groups != 1:
        raise ConfigError(
            f"{where}.answer_pattern is {pattern!r} with {compiled.groups} groups; it needs exactly one, which holds "
            'the answer, as in "#### (.+)".'
        )
    return compiled


def as_messages(prompt: str | list[Row]) -> list[Row]:
    """A prompt as chat messages; a text is a user's turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def draw_examples(rows: list[Row], few_shot: FewShot, seed: int) -> tuple[list[Row], list[Row]]:
    """(worked examples, the other rows), in the rows' order.

    Raises:
        ConfigError: for a negative count, and for one that leaves no rows.
    """
    if not 0 <= few_shot.count < max(len(rows), 1):
        raise ConfigError(
            f"data.few_shot.count is {few_shot.count}; set it to 0 or more, and below the {len(rows)} training rows."
        )
    places = set(random.Random(derive_seed("few-shot examples", seed)).sample(range(len(rows)), few_shot.count))
    return [rows[i] for i in sorted(places)], [row for i, row in enumerate(rows) if i not in places]


def with_examples(rows: list[Row], examples: list[Row], few_shot: FewShot) -> list[Row]:
    """The rows with the worked examples before their prompts."""
    if not examples:
        return rows
    if not all(example.get("prompt") for example in examples):
        raise ConfigError("a training row drawn as an example has no prompt; map one in data.columns or data.template.")
    responses = [_response(example, few_shot) for example in examples]
    return [
        row | {"prompt": _preceded(row["prompt"], examples, responses, few_shot.as_turns)} if row.get("prompt") else row
        for row in rows
    ]


def _response(example: Row, few_shot: FewShot) -> str:
    default = "{solution}" if example.get("solution") is not None else "{answer}"
    template = Template(few_shot.response or default, "data.few_shot.response")
    return template.text(example, "a training row drawn as an example")


def _preceded(prompt: str | list[Row], examples: list[Row], responses: list[str], as_turns: bool) -> str | list[Row]:
    if not as_turns:
        texts = [f"{example['prompt']}\n{response}" for example, response in zip(examples, responses, strict=True)]
        if not isinstance(prompt, str) or not all(isinstance(example["prompt"], str) for example in examples):
            raise ConfigError(
                "data.few_shot.as_turns is false, but the prompts are chat messages; set it to true, or data.system to "
                "null."
            )
        return "\n\n".join([*texts, prompt])
    messages = as_messages(prompt)
    start = 1 if messages[0].get("role") in ("system", "developer") else 0
    turns: list[Row] = []
    for example, response in zip(examples, responses, strict=True):
        asked = [turn for turn in as_messages(example["prompt"]) if turn["role"] not in ("system", "developer")]
        turns += [*asked, {"role": "assistant", "content": response}]
    return [*messages[:start], *turns, *messages[start:]]
