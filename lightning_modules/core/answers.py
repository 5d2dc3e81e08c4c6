"""Answers of a policy to multiple-choice rows, and their uncertainty: shared by `Uncertainty` and its callback."""

import math
from collections.abc import Sequence
from typing import Any

from lightning_modules.core.failure_counts import FailureCounts
from objectives.answer_uncertainty import AnswerRecord, uncertainty_figures
from policies import Policy
from policies.choice_scores import label_scores
from rewards import Reward, as_reward
from rewards.choices import LETTERS
from rollouts.written import text_batch
from support.errors import ConfigError
from support.processes import gathered

Rows = list[dict[str, Any]]
#: columns by which answers are grouped
GROUPS = ("topic", "steps")


class AnswerMeter:
    """Collects the answers of one evaluation.

    Args:
        judges: rewards that rate how difficult a question is; the completion that they see is the chosen label.
        groups: columns by which answers are grouped; a row may lack them.
        smallest_group: smallest number of questions of a group that is reported.

    Raises:
        ConfigError: two judges have one name, or that of an entropy.
    """

    def __init__(self, judges: Sequence[Reward], groups: Sequence[str] | None, smallest_group: int) -> None:
        if smallest_group < 1:
            raise ConfigError(f"smallest_group is {smallest_group}; set it to 1 or more.")
        self.judges, self.groups = [as_reward(judge) for judge in judges], list(GROUPS if groups is None else groups)
        names = ["entropy", "option_entropy", *(judge.name for judge in self.judges)]
        if len(set(names)) < len(names):
            raise ConfigError(f"the judges and entropies are named {names}; give every judge a name of its own (name).")
        self.smallest_group = smallest_group
        self.records: list[AnswerRecord] = []
        self.failures = FailureCounts()

    def reset(self) -> None:
        """Begin a new evaluation."""
        self.records, self.failures = [], FailureCounts()

    def add(self, policy: Policy, rows: Rows) -> None:
        """Answer rows with `prompt`, `labels` and `answer`, as `datamodules.ChoiceQuestions` makes them."""
        scores = label_scores(policy, rows)
        chosen = [int(logprobs.argmax()) for logprobs in scores.logprobs]
        predictors = {"entropy": scores.entropy.tolist(), "option_entropy": scores.option_entropy().tolist()}
        batch = text_batch([row["labels"][place] for row, place in zip(rows, chosen, strict=True)], rows)
        for judge in self.judges:
            predictors[judge.name] = judge(batch).tolist()
        self.failures.add(batch)
        for number, row in enumerate(rows):
            self.records.append(
                AnswerRecord(
                    question=str(row.get("id", len(self.records))),
                    correct=LETTERS[chosen[number]] == row["answer"],
                    confidence=float(scores.logprobs[number].log_softmax(0).max().exp()),
                    is_label=bool(scores.is_label[number]),
                    predictors={name: values[number] for name, values in predictors.items()},
                    groups={name: str(row[name]) for name in self.groups if row.get(name) is not None},
                )
            )

    def figures(self) -> dict[str, dict[str, Any]]:
        """The figures of all processes' answers; all processes call it.

        Raises:
            ConfigError: a judge failed for more answers than it allows.
        """
        self.records = [record for part in gathered(self.records) for record in part]
        self.failures.metrics(self.judges, "the test")
        return uncertainty_figures(self.records, self.smallest_group)

    def report(self, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The figures, and every answer, as plain data; NaN becomes None."""
        answers = [
            vars(record) | {"predictors": {name: None if math.isnan(x) else x for name, x in record.predictors.items()}}
            for record in self.records
        ]
        return {"figures": figures, "answers": answers}
