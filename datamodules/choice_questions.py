"""Multiple-choice questions of a file or a hub data set."""

import random

from datamodules.choice_rows import TEMPLATE, ChoiceForm, Labels, choice_row
from datamodules.prompts import PromptData
from datamodules.quiz import QUIZZES
from datamodules.rows import Row, read_rows
from support.errors import ConfigError
from support.seeding import derive_seed


class ChoiceQuestions(PromptData):
    """Rows with `question`, `choices`, `answer` (a letter), `prompt`, `text_prompt` and `labels`.

    All rows are test questions, unless `val_size` holds some out and leaves the others to training, for example with
    GRPO and `rewards.MultipleChoice`. Columns that reports group by are `topic` and `steps` (of reasoning); `columns`
    maps them, for example {topic: subject}.

    Args:
        source: a file, a folder or a hub data set as in `FilePrompts`, or quiz or facts (`datamodules/quiz.py`).
        split: of a hub data set. subset: its configuration's name.
        columns: this project's column name -> the data's, e.g. {topic: subject, choices: options}.
        choice_columns: columns of the options, in order, for data without a list of them.
        numbers: columns of a CSV file that hold numbers.
        template: prompt that is answered by a label; {options} are the lettered options.
        text_template: prompt that is answered by an option's text.
        system: system prompt.
        answer_prefix: beginning of the assistant's turn before the answer, e.g. "<think></think>".
        labels: letters, or choices if the options themselves are the answers; then they must differ in their first
            token.
        limit: number of questions, drawn at random by the seed; all if None.
        val_size: number of last rows that are held out; 0 makes every row a test question.
        size: number of questions of quiz and facts; ignored for files.
        seed: seed of `limit`, of the procedural questions and of the training order; the run's seed if None.
        val_batch: questions evaluated at once.
    """

    def __init__(
        self,
        source: str,
        split: str = "test",
        subset: str | None = None,
        columns: dict[str, str] | None = None,
        choice_columns: list[str] | None = None,
        numbers: list[str] | None = None,
        template: str = TEMPLATE,
        text_template: str = "{question}",
        system: str | None = None,
        answer_prefix: str | None = None,
        labels: Labels = "letters",
        limit: int | None = None,
        val_size: int = 0,
        size: int = 400,
        seed: int | None = None,
        val_batch: int = 64,
    ) -> None:
        super().__init__(seed=seed, val_batch=val_batch)
        if val_size < 0 or size < 1 or val_batch < 1 or (limit is not None and limit < 1):
            raise ConfigError(
                f"data.val_size is {val_size}, data.size {size}, data.val_batch {val_batch} and data.limit {limit}; "
                "val_size must be at least 0, the others at least 1 (limit may be null)."
            )
        self.source, self.split, self.subset, self.columns = source, split, subset, columns
        self.choice_columns, self.numbers = choice_columns, numbers or []
        self.form = ChoiceForm(template, text_template, system, answer_prefix, labels)
        self.limit, self.val_size, self.size = limit, val_size, size
        self._questions: list[Row] | None = None

    def questions(self) -> list[Row]:
        """All questions, without prompts."""
        if self._questions is None:
            if self.source in QUIZZES:
                rows = QUIZZES[self.source](self.size, self.seed)
            else:
                rows = read_rows(self.source, self.split, self.columns, self.subset, self.numbers)
            rows = [
                choice_row(row, f"row {number} of {self.source!r}", self.choice_columns)
                | {"id": str(row.get("id", number))}
                for number, row in enumerate(rows)
            ]
            if self.limit is not None and self.limit < len(rows):
                rng = random.Random(derive_seed("choice questions", self.seed))
                rows = [rows[place] for place in sorted(rng.sample(range(len(rows)), self.limit))]
            if self.val_size >= len(rows):
                raise ConfigError(
                    f"{self.source!r} has {len(rows)} questions, and data.val_size {self.val_size} leaves none to "
                    "train on; lower it, or set it to 0 for a test alone."
                )
            self._questions = rows
        return self._questions

    def _formed(self, rows: list[Row]) -> list[Row]:
        return [self.form.row(row, f"question {row['id']!r} of {self.source!r}") for row in rows]

    def train_rows(self) -> list[Row]:
        if not self.val_size:
            raise ConfigError(
                f"every row of {self.source!r} is a test question, because data.val_size is 0; set it to the number of "
                "rows to hold out from training."
            )
        return self._formed(self.questions()[: -self.val_size])

    def val_rows(self) -> list[Row]:
        return self._formed(self.questions()[-self.val_size :])  # all rows for 0

    test_rows = val_rows
