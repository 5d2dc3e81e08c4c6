"""Rates, lengths and accuracies of thinking, measured in every method's validation.

For a model without a think block only the lengths are measured.
"""

from collections import defaultdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from policies import Policy
from rewards.still3 import action_count
from rollouts import Mode, RolloutBatch, ThinkingFormat, thinking_format
from support.processes import gathered

#: words by which AdaptThink's authors find reasoning in answers without a think block (arXiv 2505.13417)
REFLECTION = ("wait", "alternatively")
Totals = dict[str, tuple[float, float]]


class ThinkingStats:
    """Sums and counts over one evaluation, by mode and by difficulty.

    Each process keeps its own sums, and all processes exchange them once at the end: exchanging them earlier could
    hang if one process never saw a mode or a level.

    Args:
        form: format of the policy's think block; None if its chat template has none, which leaves only lengths by
            difficulty.
    """

    def __init__(self, form: ThinkingFormat | None) -> None:
        self.form = form
        self.sums: dict[str, list[float]] = defaultdict(partial(list, (0.0, 0.0)))
        self.means: dict[str, float] = {}

    @classmethod
    def of(cls, policy: Policy) -> "ThinkingStats":
        """The statistics for a policy."""
        return cls(thinking_format(policy))

    def add(self, batch: RolloutBatch, correct: Tensor | None = None) -> None:
        """Count one evaluated batch.

        Args:
            correct: (rows,), bool, or 1, 0 and NaN for unknown; None without a reward that judges correctness.
        """
        lengths, levels = batch.lengths, difficulties(batch.rows, batch.group_size)
        groups = {
            f"/{level}": torch.tensor([row_level == level for row_level in levels], device=lengths.device)
            for level in set(levels) - {None}
        }
        for end, rows in groups.items():
            self._count(f"length{end}", lengths[rows])
        if self.form is None:
            return
        modes = self.form.modes(batch)
        modal = {"thinking": modes == Mode.THINKING, "no_thinking": modes == Mode.NO_THINKING}
        for end, rows in ({"": torch.ones_like(modes, dtype=torch.bool)} | groups).items():
            self._count(f"thinking_rate{end}", modal["thinking"][rows])
            self._count(f"no_thinking_rate{end}", modal["no_thinking"][rows])
        self._count("unclosed_rate", modes == Mode.UNCLOSED)
        reflects = torch.tensor([action_count(text, REFLECTION) > 0 for text in batch.completions], device=modes.device)
        self._count("implicit_thinking", reflects[modal["no_thinking"]])
        for name, chosen in modal.items():
            self._count(f"length/{name}", lengths[chosen])
            if correct is not None:
                self._count(f"pass@1/{name}", correct[chosen])

    def _count(self, name: str, values: Tensor) -> None:
        values = values[~values.isnan()]
        if len(values):
            self.sums[name][0] += float(values.float().sum())
            self.sums[name][1] += len(values)

    def metrics(self) -> dict[str, float]:
        """The means over all processes, which also stay in `means`."""
        totals: Totals = defaultdict(lambda: (0.0, 0.0))
        for sums in gathered(dict(self.sums)):
            for name, (value, count) in sums.items():
                totals[name] = (totals[name][0] + value, totals[name][1] + count)
        self.means = {name: value / count for name, (value, count) in sorted(totals.items())}
        return self.means


def difficulties(rows: list[dict[str, Any]], group_size: int = 1) -> list[str | None]:
    """The difficulty of every completion: the row's `task`, else its `level`, else None."""
    named = [row.get("task", row.get("level")) for row in rows]
    return [None if name is None else str(name) for name in named for _ in range(group_size)]
