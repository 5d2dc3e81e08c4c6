"""SATURN's verifier (arXiv 2505.16368): any assignment that satisfies the formula is right."""

import re
from typing import Any

from datamodules.saturn import satisfied
from rewards.base import Reward, needs
from rollouts import RolloutBatch


class SatAssignment(Reward):
    """1 if the last \\boxed{...} of the completion satisfies the row's formula `clause`, 0 if it does not, `no_box` if there is none.

    Args:
        no_box: the authors' -1; 0 treats a missing answer as a wrong one.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(self, no_box: float = -1.0, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.no_box = no_box

    def score(self, batch: RolloutBatch) -> list[float]:
        boxes = [re.findall(r"\\boxed\{(.*?)\}", text) for text in batch.completions]
        pairs = zip(boxes, batch.column("clause"), strict=True)
        return [float(satisfied(clause, box[-1])) if box else self.no_box for box, clause in pairs]

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "clause")
