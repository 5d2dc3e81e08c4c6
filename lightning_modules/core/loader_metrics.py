"""Metrics of an evaluation with several loaders: over all of them, and of each under Lightning's suffix for it."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_modules.core.problem_counts import ProblemCounts
from support.processes import gathered, means


def suffixes(loaders: Iterable[int]) -> dict[int, str]:
    """The suffix of each loader's metrics, over all processes; empty for a single loader."""
    numbers = sorted({number for numbers in gathered(sorted(loaders)) for number in numbers})
    return {number: f"/dataloader_idx_{number}" for number in numbers} if len(numbers) > 1 else {}


def loader_means(values: Mapping[tuple[int, str], Sequence[Tensor]]) -> dict[str, float]:
    """Means over the rows of all processes, without NaN.

    Args:
        values: tensors with one entry per row, by loader and metric.
    """
    named: dict[str, list[Tensor]] = {}
    ends = suffixes({loader for loader, _ in values})
    for (loader, name), tensors in values.items():
        named.setdefault(name, []).extend(tensors)
        if loader in ends:
            named[name + ends[loader]] = list(tensors)
    return means({name: torch.cat(tensors) for name, tensors in named.items()})


def loader_pass_rates(
    counts: Mapping[int, ProblemCounts], pass_ks: dict[str, int], intervals: bool
) -> dict[str, float]:
    """pass@1 and every configured pass@k, see `problem_counts.pass_metrics`.

    Args:
        counts: counts of correct samples by loader.
    """
    together = ProblemCounts()
    for part in counts.values():
        together.counts += part.counts
    metrics = together.metrics(pass_ks, intervals)
    for loader, suffix in suffixes(counts).items():
        of_loader = counts.get(loader, ProblemCounts()).metrics(pass_ks, intervals)
        metrics |= {name + suffix: value for name, value in of_loader.items()}
    return metrics
