"""How often a model thinks, on what, how long and with what success: measured in every method's validation whose model can think."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from policies import Policy
from rollouts import Mode, RolloutBatch, ThinkingFormat, thinking_format
from support.processes import gathered

if TYPE_CHECKING:
    from lightning_modules.on_policy import OnPolicyModule

Totals = dict[str, tuple[float, float]]


class ThinkingStats:
    """Sums and counts over one evaluation, by mode and by difficulty.

    Every process keeps its own until the end, where all of them exchange theirs once: a mode or a level that one process never saw would
    otherwise leave the others waiting for it.

    Args:
        form: of the policy's think block.
    """

    def __init__(self, form: ThinkingFormat) -> None:
        self.form = form
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.means: dict[str, float] = {}

    @classmethod
    def of(cls, policy: Policy) -> "ThinkingStats | None":
        """For a policy; None if its chat template knows no think block."""
        form = thinking_format(policy)
        return None if form is None else cls(form)

    def add(self, batch: RolloutBatch, correct: Tensor | None = None) -> None:
        """Count one evaluated batch.

        Args:
            correct: (rows,), bool, or 1, 0 and NaN where it is not known; None if no reward says so.
        """
        modes, lengths = self.form.modes(batch), batch.lengths
        modal = {"thinking": modes == Mode.THINKING, "no_thinking": modes == Mode.NO_THINKING}
        levels = difficulties(batch.rows, batch.group_size)
        groups = {"": torch.ones_like(modes, dtype=torch.bool)}
        groups |= {f"/{level}": torch.tensor([own == level for own in levels], device=modes.device) for level in set(levels) - {None}}
        for end, rows in groups.items():
            self._count(f"thinking_rate{end}", modal["thinking"][rows])
            self._count(f"no_thinking_rate{end}", modal["no_thinking"][rows])
            if end:
                self._count(f"length{end}", lengths[rows])
        self._count("unclosed_rate", modes == Mode.UNCLOSED)
        for name, chosen in modal.items():
            self._count(f"length/{name}", lengths[chosen])
            if correct is not None:
                self._count(f"pass@1/{name}", correct[chosen])

    def _count(self, name: str, values: Tensor) -> None:
        values = values[~values.isnan()]
        if len(values):
            self.sums[name][0] += float(values.float().sum())
            self.sums[name][1] += len(values)

    def log(self, module: "OnPolicyModule", stage: str) -> None:
        """Log the means over all processes; they stay in `means`, by name."""
        totals: Totals = defaultdict(lambda: (0.0, 0.0))
        for part in gathered(dict(self.sums)):
            for name, (value, count) in part.items():
                totals[name] = (totals[name][0] + value, totals[name][1] + count)
        self.means = {name: value / count for name, (value, count) in sorted(totals.items())}
        for name, value in self.means.items():
            module.log(f"{stage}/{name}", value, sync_dist=True)  # equal on all processes already; Lightning warns otherwise


def difficulties(rows: list[dict[str, Any]], group_size: int = 1) -> list[str | None]:
    """The difficulty of every completion: the row's `task`, else its `level`, else None."""
    named = [row.get("task", row.get("level")) for row in rows]
    return [None if name is None else str(name) for name in named for _ in range(group_size)]
