"""Rewards that belong to a task: reasoning-gym's scorers and the rule of the records help desk."""

import json
from functools import cache
from typing import Any, Literal

from datamodules.records import true_cost, true_reward
from rewards.answers import answers, last_number
from rewards.base import Reward, needs


@cache
def _scorer(task: str) -> Any:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


class ReasoningGymScore(Reward):
    """reasoning-gym's own score of the answer, between 0 and 1; needs the columns that `ReasoningGymPrompts` writes.

    Args:
        extract: what of the text after the reasoning is the answer: what stands in <answer> tags (all of it if there are none), the last
            number (for small models that talk around it), or all of it.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(self, extract: Literal["tags", "number", "text"] = "tags", weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.extract = extract

    def score(self, batch):
        return [self._one(text, entry) for text, entry in zip(answers(batch), batch.column("entry"), strict=True)]

    def _one(self, answer: str, entry: str) -> float:
        data = json.loads(entry)
        if self.extract == "tags" and "<answer>" in answer:
            answer = answer.rsplit("<answer>", 1)[1].split("</answer>", 1)[0].strip()
        elif self.extract == "number":
            answer = "" if (number := last_number(answer)) is None else str(number)
        return float(_scorer(data["metadata"]["source_dataset"])(answer=answer, entry=data))

    def check_columns(self, row):
        needs(self, row, "entry")


class RecordsReward(Reward):
    """The true helpfulness of a help desk's response, by the rule in datamodules/records.py."""

    def score(self, batch):
        return [true_reward(p, c) for p, c in zip(batch.column("prompt"), batch.completions, strict=True)]


class RecordsCost(Reward):
    """The true cost of a help desk's response: 1 if it tells another customer's secret."""

    span = (0.0, 1.0, True)

    def score(self, batch):
        return [true_cost(p, c) for p, c in zip(batch.column("prompt"), batch.completions, strict=True)]
