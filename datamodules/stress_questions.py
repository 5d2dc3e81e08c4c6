"""Multiple-choice questions under content-preserving edits (arXiv 2502.12459)."""

from typing import Any

from datamodules.choice_questions import ChoiceQuestions
from datamodules.choice_rows import STATEMENT
from datamodules.perturbations import CONDITIONS
from datamodules.prompt_form import Template
from datamodules.rows import Row
from support.errors import ConfigError

BASE = "base"


class StressQuestions(ChoiceQuestions):
    """Every question as it is (the condition base) and under every condition, as test rows of their own.

    Rows also have `condition` and `question_id`, which all rows of a question share.

    Args:
        conditions: names of `datamodules.perturbations.CONDITIONS`; all if None.
        statement_template: prompt of a true/false statement, with {question} and {statement}.
        perturbation_seed: seed of the edits: the remarks and nouns that are drawn.
        kwargs: as of `ChoiceQuestions`.
    """

    def __init__(
        self,
        source: str,
        *,
        conditions: list[str] | None = None,
        statement_template: str = STATEMENT,
        perturbation_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(source, **kwargs)
        conditions = list(CONDITIONS) if conditions is None else conditions
        if unknown := [name for name in conditions if name not in CONDITIONS]:
            raise ConfigError(
                f"data.conditions has {unknown[0]!r}, which is not one of {', '.join(CONDITIONS)}; correct its "
                "spelling, or add a function to datamodules/perturbations.py."
            )
        self.conditions, self.perturbation_seed = list(dict.fromkeys(conditions)), perturbation_seed
        self.statement_template = Template(statement_template, "data.statement_template")

    def test_rows(self) -> list[Row]:
        questions = super().val_rows()
        return [row for question in questions for row in self.variants(question)]

    def variants(self, question: Row) -> list[Row]:
        """The question as it is and under all conditions, with prompts."""
        where = f"question {question['id']!r} of {self.source!r}"
        rows = [question | {"condition": BASE, "question_id": question["id"]}]
        for condition in self.conditions:
            for number, edited in enumerate(CONDITIONS[condition](question, self.perturbation_seed)):
                if "statement" in edited:
                    formed = edited | {"prompt": self.form.prompt(self.statement_template.text(edited, where))}
                else:
                    formed = self.form.row(edited, where)
                key = {"id": f"{question['id']}/{condition}/{number}", "question_id": question["id"]}
                rows.append(formed | key | {"condition": condition})
        return rows
