"""pass@k of an evaluation, from how many of each problem's samples are correct: exact over all batches and processes."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from objectives.bootstrap import bootstrap_interval
from objectives.pass_at_k import pass_rate
from support.processes import gathered
from support.seeding import run_seed

if TYPE_CHECKING:
    from lightning_modules.core.on_policy import OnPolicyModule


def pass_at_k(correct: Tensor, k: int) -> Tensor:
    """1 - C(n - c, k) / C(n, k) for each problem, from n samples of which c are correct (Chen et al., arXiv 2107.03374, eq. 1).

    Args:
        correct: (problems, samples), bool.
    """
    right = correct.sum(1).double()
    return pass_rate(torch.full_like(right, correct.shape[1]), right, k)


class ProblemCounts:
    """Correct samples of every problem of one evaluation.

    Every process keeps those of its own problems until the end, where all of them exchange theirs once: a task that one process never saw
    would otherwise leave the others waiting for it, and an interval cannot be averaged over batches.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, int, int]] = []  # (task, samples, of which correct) of each problem

    def add(self, rows: list[dict[str, Any]], correct: Tensor) -> None:
        """Count one batch.

        Args:
            rows: the data rows of its problems. correct: (problems, samples), bool.
        """
        counts = correct.sum(1).tolist()
        self.found += [
            (str(row.get("task", "")), correct.shape[1], count) for row, count in zip(rows, counts, strict=True)
        ]

    def log(self, module: "OnPolicyModule", stage: str) -> None:
        """Log pass@1 and every wanted pass@k, in all and by task, and their intervals where they are asked for."""
        everything = [item for part in gathered(self.found) for item in part]
        for name, value in self.metrics(
            everything, module.evaluation.pass_ks, module.evaluation.with_intervals(stage)
        ).items():
            module.log(
                f"{stage}/{name}", value, prog_bar=name == "pass@1", sync_dist=True
            )  # equal on all processes already; Lightning warns otherwise

    @staticmethod
    def metrics(found: list[tuple[str, int, int]], pass_ks: dict[str, int], intervals: bool) -> dict[str, float]:
        """Means over the problems by metric name.

        Args:
            found: (task, samples, of which correct) of each problem.
            pass_ks: k by the metric's name; pass@1 is always there.
            intervals: add `<name>/low` and `<name>/high`, 95 % bootstrap intervals over the problems, in all and by task.
        """
        if not found:
            return {}
        tasks = np.array([task for task, _, _ in found])
        samples = torch.tensor([n for _, n, _ in found], dtype=torch.float64)
        right = torch.tensor([c for _, _, c in found], dtype=torch.float64)
        names = np.unique(tasks).tolist()
        parts = {"": np.ones(len(tasks), dtype=bool)} | {f"/{task}": tasks == task for task in names if len(names) > 1}
        metrics = {}
        for name, k in ({"pass@1": 1} | pass_ks).items():
            values = pass_rate(samples, right, k).numpy()
            for end, chosen in parts.items():
                metrics[f"{name}{end}"] = float(values[chosen].mean())
                if intervals:
                    metrics[f"{name}{end}/low"], metrics[f"{name}{end}/high"] = bootstrap_interval(
                        values[chosen], seed=run_seed()
                    )
        return metrics
