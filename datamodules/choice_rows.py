"""Multiple-choice rows from any columns: a question, its options, and the letter of the right one."""

from typing import Any, Literal

from datamodules.prompt_form import Template, as_messages
from datamodules.rows import Row
from support.errors import ConfigError

LETTERS = "ABCDEFGHIJ"
TEMPLATE = "{question}\n{options}\nAnswer with the letter of the right option."
STATEMENT = "{question}\nProposed answer: {statement}\nIs the proposed answer right? Answer True or False."
Labels = Literal["letters", "choices"]


def choice_row(row: Row, where: str, choice_columns: list[str] | None = None) -> Row:
    """The row with `question`, `choices` (texts) and `answer` (a letter).

    Options are a list, ARC's dict of `text` and `label`, or several columns. Answers are a letter, a label of ARC's
    dict, a number from 0, or the text of one option.

    Args:
        where: the row, for messages.
        choice_columns: columns of the options, in order, in place of the column `choices`.

    Raises:
        ConfigError: the row lacks a question, options, or an answer that is one of them.
    """
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(
            f"{where} has {str(question)[:40]!r} as its question, which must be a text; map the question's column with "
            f"data.columns {{question: NAME}}. Its columns are {sorted(row)}."
        )
    named: list[str] | None = None
    options: Any = [row.get(column) for column in choice_columns] if choice_columns else row.get("choices")
    if isinstance(options, dict) and isinstance(options.get("text"), list):
        named = [str(label) for label in options.get("label") or []]
        options = options["text"]
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS) or None in options:
        raise ConfigError(
            f"{where} has {str(options)[:60]!r} as its options; they must be a list of 2 to {len(LETTERS)} texts. Map "
            "the list's column with data.columns {choices: NAME}, or list the options' columns in data.choice_columns."
        )
    choices = [str(option) for option in options]
    place = _place(row.get("answer"), choices, named)
    if place is None:
        raise ConfigError(
            f"{where} has the answer {str(row.get('answer'))[:40]!r}, which is neither a letter of its {len(choices)} "
            "options, nor their number from 0, nor the text of exactly one of them; map the answer's column with "
            "data.columns {answer: NAME}, and name it in data.numbers if a CSV file holds numbers."
        )
    return row | {"question": question, "choices": choices, "answer": LETTERS[place]}


def _place(answer: Any, choices: list[str], named: list[str] | None) -> int | None:
    if answer is None or isinstance(answer, bool):
        return None
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and named is None:
        return answer if 0 <= answer < len(choices) else None
    text = str(answer).strip()
    if named is not None and text in named:
        return named.index(text)
    if choices.count(text) == 1:
        return choices.index(text)
    letter = text.strip("().").upper()
    place = LETTERS.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < len(choices) else None


class ChoiceForm:
    """Makes the prompts of multiple-choice rows.

    Args:
        template: prompt that a label answers, with columns in braces; {options} are the lettered options, one per line.
        text_template: prompt that an option's text answers.
        system: system prompt.
        answer_prefix: beginning of the assistant's turn, before the label or the text, such as
            "<think></think>" for a model that thinks.
        labels: what names an option in an answer: its letter, or its own text.

    Raises:
        ConfigError: for a template that cannot be used.
    """

    def __init__(
        self,
        template: str,
        text_template: str,
        system: str | None = None,
        answer_prefix: str | None = None,
        labels: Labels = "letters",
    ) -> None:
        self.template = Template(template, "data.template")
        self.text_template = Template(text_template, "data.text_template")
        self.system, self.answer_prefix, self.labels = system, answer_prefix, labels

    def row(self, row: Row, where: str) -> Row:
        """The row with `prompt`, `text_prompt` and `labels`."""
        letters = LETTERS[: len(row["choices"])]
        options = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, row["choices"], strict=True))
        labels = list(letters) if self.labels == "letters" else row["choices"]
        texts = row | {"options": options}
        return row | {
            "prompt": self.prompt(self.template.text(texts, where)),
            "text_prompt": self.prompt(self.text_template.text(texts, where)),
            "labels": labels,
        }

    def prompt(self, text: str) -> str | list[Row]:
        """A text as prompt, with the system prompt and the beginning of the answer."""
        if self.system is None and self.answer_prefix is None:
            return text
        messages = as_messages(text)
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *messages]
        if self.answer_prefix is not None:
            messages = [*messages, {"role": "assistant", "content": self.answer_prefix}]
        return messages
