"""pass@k of an evaluation, from the counts of correct samples per problem: exact over all batches and processes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from objectives.bootstrap import bootstrap_interval
from objectives.pass_at_k import pass_rate
from support.processes import gathered
from support.seeding import run_seed


def pass_at_k(correct: Tensor, k: int) -> Tensor:
    """1 - C(n - c, k) / C(n, k) for each problem, from n samples of which c are correct.

    Source: Chen et al., arXiv 2107.03374, eq. 1.

    Args:
        correct: (problems, samples), bool.
    """
    right = correct.sum(1).double()
    return pass_rate(torch.full_like(right, correct.shape[1]), right, k)


class ProblemCounts:
    """Counts of correct samples for every problem of one evaluation.

    Each process keeps the counts of its own problems, and all processes exchange them once at the end: exchanging
    them earlier could hang if one process never saw a task, and intervals cannot be averaged over batches.
    """

    def __init__(self) -> None:
        #: (task, samples, correct samples) of each problem
        self.counts: list[tuple[str, int, int]] = []

    def add(self, rows: list[dict[str, Any]], correct: Tensor) -> None:
        """Count one batch.

        Args:
            rows: the data rows of its problems.
            correct: (problems, samples), bool.
        """
        for row, count in zip(rows, correct.sum(1).tolist(), strict=True):
            self.counts.append((str(row.get("task", "")), correct.shape[1], count))

    def metrics(self, pass_ks: dict[str, int], intervals: bool) -> dict[str, float]:
        """pass@1 and every configured pass@k over the problems of all processes, see `pass_metrics`."""
        return pass_metrics([count for counts in gathered(self.counts) for count in counts], pass_ks, intervals)


def pass_metrics(counts: list[tuple[str, int, int]], pass_ks: dict[str, int], intervals: bool) -> dict[str, float]:
    """Means over the problems by metric name, overall and by task.

    Args:
        counts: (task, samples, correct samples) of each problem.
        pass_ks: k by the metric's name; pass@1 is always added.
        intervals: add `<name>/low` and `<name>/high`, 95 % bootstrap intervals over the problems, overall and by task.
    """
    if not counts:
        return {}
    tasks = np.array([task for task, _, _ in counts])
    samples = torch.tensor([n for _, n, _ in counts], dtype=torch.float64)
    correct = torch.tensor([c for _, _, c in counts], dtype=torch.float64)
    names = np.unique(tasks).tolist()
    masks = {"": np.ones(len(tasks), dtype=bool)} | {f"/{task}": tasks == task for task in names if len(names) > 1}
    metrics = {}
    for name, k in ({"pass@1": 1} | pass_ks).items():
        values = pass_rate(samples, correct, k).numpy()
        for suffix, mask in masks.items():
            metrics[f"{name}{suffix}"] = float(values[mask].mean())
            if intervals:
                low, high = bootstrap_interval(values[mask], seed=run_seed())
                metrics[f"{name}{suffix}/low"], metrics[f"{name}{suffix}/high"] = low, high
    return metrics
