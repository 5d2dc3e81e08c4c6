"""What a verdict on an own solution earns (self-verification, arXiv 2506.01369)."""

import math
import re
from typing import Any

from rewards.answers import answer_text
from rewards.base import Reward
from rollouts import RolloutBatch


def verdict_of(text: str) -> bool | None:
    """The last Yes (True) or No (False) of a text, None without either."""
    found = re.findall(r"\b(yes|no)\b", text, re.IGNORECASE)
    return found[-1].lower() == "yes" if found else None


class Verdict(Reward):
    """For questions about a solution: 1 if the verdict after the reasoning is the truth, else 0, weighted by how hard it was to tell; NaN for other rows.

    A right solution out of G_c right ones in a group of G weighs G / (2 G_c), a wrong one out of G_i G / (2 G_i), so that the rare kind pays more and a
    perfect verifier earns 1 on average; where all of a group are alike the weight is 1.

    Args:
        dynamic: weigh; otherwise every true verdict earns 1.
        code_penalty: taken off where the completion has a code block; 0.5 is the paper's 7B, 0 its 1.5B.
        bare_penalty: taken off where a verdict has no reasoning before it; 0.5 is the paper's 7B, 0 its 1.5B.
        weight, name: as in every reward.
    """

    may_abstain = True

    def __init__(
        self,
        dynamic: bool = True,
        code_penalty: float = 0.5,
        bare_penalty: float = 0.5,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.dynamic, self.code_penalty, self.bare_penalty = dynamic, code_penalty, bare_penalty

    def verdicts(self, batch: RolloutBatch) -> list[bool | None]:
        """Yes (True), No (False) or neither (None), of every row."""
        return [
            verdict_of(answer_text(text, opened)) for text, opened in zip(batch.completions, batch.opened, strict=True)
        ]

    def _one(self, row: dict[str, Any], verdict: bool | None, completion: str) -> float:
        correct, size = row["solution_correct"], row["group_size"]
        alike = row["group_correct"] if correct else size - row["group_correct"]
        weight = size / (2 * alike) if self.dynamic and alike < size else 1.0
        score = weight * (verdict is correct)
        bare = verdict is not None and not re.sub(r"</?think>|\b(yes|no)\b|\W", "", completion, flags=re.IGNORECASE)
        return score - self.code_penalty * ("```" in completion) - self.bare_penalty * bare

    def score(self, batch: RolloutBatch) -> list[float]:
        rows = [batch.rows[i] for i in batch.groups.tolist()]
        given = zip(rows, self.verdicts(batch), batch.completions, strict=True)
        return [
            self._one(row, verdict, text) if "solution_correct" in row else math.nan for row, verdict, text in given
        ]
