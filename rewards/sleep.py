"""The checkable rubric of advice on sleep reports, and the swap test (SleepCoT, arXiv 2410.16924).

The rule base is that of `datamodules.sleep`. Only the answer is scored, the text after the reasoning.
"""

import math
import re
from typing import Any, Literal, get_args

from datamodules.sleep import ADVICE, METRICS, NOTHING, findings_of, shown
from rewards.answers import answers
from rewards.base import Reward, needs
from rollouts import RolloutBatch
from support.errors import ConfigError

Part = Literal["correct", "personalisation", "reasoning", "knowledge", "safety", "format"]
#: a metric with its value
_CITED = re.compile(r"\b(sleep|latency|efficiency|deep|rem|hrv|pulse|wakes):(\d{1,3}(?:\.\d)?)(?![\d.])")


def _items(answer: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """(advice, the values that it is for) of every part of a recommendation."""
    parts = [part.partition(" for ")[::2] for part in answer.split(";")]
    return [(" ".join(advice.split()), _CITED.findall(values)) for advice, values in parts]


class SleepRubric(Reward):
    """One part of the rubric, from 0 to 1; NaN for tasks that it does not apply to.

    - correct: the whole answer is right. The parts of a recommendation may come in any order. Every task.
    - personalisation: fraction of the metrics outside their healthy range that are cited with their values.
    - reasoning: fraction of the advice that the rule base links to exactly the findings it is given for.
    - safety: 1 if every cited value is in the report, else 0: no invented metric. Questions about reports.
    - format: fraction of the parts of a recommendation that have advice and cite a value.
    - knowledge: the answer to a question of knowledge is right.

    Args:
        part: the part of the rubric. weight, name: as in every reward; sleep_<part> by default.
    """

    may_abstain = True

    def __init__(self, part: Part = "correct", weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name or f"sleep_{part}")
        if part not in get_args(Part):
            raise ConfigError(f"SleepRubric: part is {part!r}; set it to one of {', '.join(get_args(Part))}.")
        self.part, self.is_correctness = part, part == "correct"

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "task", "answer")
        if _task(row) != "knowledge":
            needs(self, row, "report")
            if missing := [name for name in METRICS if not isinstance(row["report"].get(name), int | float)]:
                raise ConfigError(
                    f"the reward {self.name!r} (SleepRubric) needs the number {missing[0]!r} in the column report, but "
                    f"row {row.get('id')!r} has {row['report']}; correct the row, or make rows with "
                    "assets/sleep_data.py."
                )

    def gold(self, row: dict[str, Any]) -> str | None:
        return str(row["answer"]) if self.is_correctness else None

    def score(self, batch: RolloutBatch) -> list[float]:
        rows = [batch.rows[i] for i in batch.groups.tolist()]
        return [self._one(row, " ".join(text.split())) for row, text in zip(rows, answers(batch), strict=True)]

    def _one(self, row: dict[str, Any], answer: str) -> float:
        task = _task(row)
        if self.part == "correct":
            return float(sorted(answer.split(" ; ")) == sorted(row["answer"].split(" ; ")))
        if self.part == "knowledge":
            return float(answer == row["answer"]) if task == "knowledge" else math.nan
        if task == "knowledge":
            return math.nan
        values = {name: shown(value) for name, value in row["report"].items()}
        cited = _CITED.findall(answer)
        if self.part == "safety":
            return float(all(values[name] == value for name, value in cited))
        if task == "follow_up":
            return math.nan
        findings = {finding.split()[0]: finding for finding in findings_of(row["report"])}
        if self.part == "personalisation":
            right = {name for name, value in cited if name in findings and values[name] == value}
            return len(right) / len(findings) if findings else math.nan
        if answer == NOTHING:
            return float(self.part == "format" or not findings)
        items = _items(answer)
        if self.part == "format":
            return sum(bool(advice and of_advice) for advice, of_advice in items) / len(items)
        linked = [
            ADVICE.get(tuple(findings.get(name, "") for name, _ in of_advice)) == advice for advice, of_advice in items
        ]
        return sum(linked) / len(linked)


class SwapSensitivity(Reward):
    """1 if the answer differs from that to the same question about the other report of a pair, else 0.

    An answer that does not change when two users' reports are exchanged does not read them. NaN for rows without a
    `pair`, whose partner was not sampled in the same batch, or whose answers should be equal.

    Args:
        weight, name: as in every reward.
    """

    may_abstain = True

    def score(self, batch: RolloutBatch) -> list[float]:
        groups, size = batch.groups.tolist(), batch.group_size
        texts, place = answers(batch), {str(row.get("id")): number for number, row in enumerate(batch.rows)}
        scores = []
        for number, group in enumerate(groups):
            row = batch.rows[group]
            other = place.get(str(row.get("pair")))
            if other is None or batch.rows[other]["answer"] == row["answer"]:
                scores.append(math.nan)
                continue
            theirs = texts[other * size + number % size]
            scores.append(float(texts[number].split() != theirs.split()))
        return scores


def _task(row: dict[str, Any]) -> str:
    """recommend, follow_up or knowledge."""
    return str(row["task"]).partition("-")[0]
