"""SATURN's verifier (arXiv 2505.16368): any assignment that satisfies the formula is right."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from datamodules.saturn import satisfied
from rewards.base import Reward, needs
from rewards.math_text import last_box
from rollouts import RolloutBatch


class SatAssignment(Reward):
    """1 if the last \\boxed{...} of the completion satisfies the row's `clause`, 0 if not, `no_box` without a box.

    Args:
        no_box: -1 as in the authors' code; 0 treats a missing answer as a wrong one.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(self, no_box: float = -1.0, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.no_box = no_box

    def score(self, batch: RolloutBatch) -> list[float]:
        boxes = [last_box(text) for text in batch.completions]
        pairs = zip(boxes, batch.column("clause"), strict=True)
        return [self.no_box if box is None else float(satisfied(clause, box)) for box, clause in pairs]

    def unscaled(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return (scores >= 1).to(scores.dtype)  # a missing box counts as a wrong answer

    def extracted(self, batch: RolloutBatch) -> list[str]:
        return [last_box(text) or "" for text in batch.completions]

    def gold(self, row: dict[str, Any]) -> str | None:
        return None if None in (row.get("answer"), row.get("clause")) else f"\\boxed{{{row['answer']}}}"

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "clause")
