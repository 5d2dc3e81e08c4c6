"""Metrics of a rollout under the names that all methods share."""

from collections.abc import Mapping, Sequence

import lightning as L
import torch
from torch import Tensor

from rewards import Reward, total_reward
from rollouts import RolloutBatch
from support.processes import process_count, summed

#: metrics on the progress line
SHOWN = {"train/reward", "train/length", "train/kl", "perf/rollout_tokens_per_s"}


def forget_earlier_steps(trainer: L.Trainer) -> None:
    """Drop what earlier rollouts logged.

    Lightning shows and logs a step's metric again at every later step of the epoch that does not log it. A controller
    would act on a KL of another rollout, and a resumed run, which does not know the old value, would act differently.
    """
    for metric in (trainer._results or {}).values():
        if metric.meta.on_step and not metric.meta.on_epoch:
            metric.reset()
    for name in [name for name in trainer.callback_metrics if name.startswith(("train/", "perf/"))]:
        del trainer.callback_metrics[name]


def means_over_processes(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean of every quantity over the rows of all processes, without NaN.

    Args:
        values: (rows,) by name; the same names on all processes. A name with NaN only is left out.
    """
    stacked = torch.stack([value.double() for value in values.values()])
    totals = summed(torch.stack([stacked.nan_to_num(0.0).sum(1), (~stacked.isnan()).sum(1).double()]))
    return {name: total / count for name, total, count in zip(values, *totals.tolist(), strict=True) if count}


def rollout_metrics(
    rewards: Sequence[Reward], names: Mapping[str, str], drawn: RolloutBatch, metrics: Mapping[str, float]
) -> dict[str, float]:
    """Means over the rows of all processes, and further metrics, under train/.

    Args:
        rewards: rewards that are summed in `train/reward`.
        names: metric of each score in `drawn.rewards`.
        drawn: the rollout before any selection.
        metrics: metrics of the update and the method; the rows' means take precedence.
    """
    rows = {names[name]: scores for name, scores in drawn.rewards.items()}
    if rewards:
        rows["reward"] = total_reward(list(rewards), drawn.rewards, drawn.failures)
    rows |= {} if drawn.turns is None else drawn.turns.metrics(drawn.completion_mask)
    rows |= {"length": drawn.lengths, "truncated": drawn.truncated}
    return {f"train/{name}": value for name, value in (dict(metrics) | means_over_processes(rows)).items()}


def throughput(
    drawn: RolloutBatch,
    learned: RolloutBatch,
    metrics: Mapping[str, float],
    rollout_seconds: float,
    update_seconds: float,
) -> dict[str, float]:
    """Tokens per second of this process in rollout and update, and on a GPU the peak memory in GB.

    Args:
        drawn: the rollout before any selection.
        learned: the rows that the update learned from.
        metrics: `extra_tokens` among them counts tokens that all processes generated in addition to `drawn`.
    """
    generated = float(drawn.lengths.sum()) + metrics.get("extra_tokens", 0.0) / process_count()
    values = {
        "perf/rollout_tokens_per_s": generated / rollout_seconds,
        "perf/update_tokens_per_s": float(learned.lengths.sum()) / update_seconds,
    }
    if drawn.completion_ids.is_cuda:
        values["perf/peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return values
