"""Metrics of a rollout under the names that all methods share."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewards import total_reward
from rollouts import RolloutBatch

if TYPE_CHECKING:
    from lightning_modules.core.on_policy import OnPolicyModule

SHOWN = {"train/reward", "train/length", "train/kl", "perf/rollout_tokens_per_s"}


def means(module: "OnPolicyModule", rows: dict[str, Tensor]) -> dict[str, float]:
    """Mean of every quantity over the rows of all processes that have it (are not NaN)."""
    found = torch.stack([value.double() for value in rows.values()])
    totals = module.summed(torch.stack([found.nan_to_num(0.0).sum(1), (~found.isnan()).sum(1).double()]))
    return {name: total / count for name, total, count in zip(rows, *totals.tolist(), strict=True) if count}


def log_rollout(
    module: "OnPolicyModule",
    batch: RolloutBatch,
    metrics: dict[str, float],
    rollout_seconds: float,
    update_seconds: float,
) -> None:
    """Log one rollout and its updates: means over the rows of all processes; `metrics` are the update's own."""
    tokens, learned = float(batch.lengths.sum()), module.last_rollout or batch
    rows = {module.metric_name(name): scores for name, scores in batch.rewards.items()}
    if module.rewards:
        rows["reward"] = total_reward(module.rewards, batch.rewards, batch.failures)
    rows |= {"length": batch.lengths, "truncated": batch.truncated}
    values = {f"train/{name}": value for name, value in metrics.items()}
    values |= {f"train/{name}": value for name, value in means(module, rows).items()}
    values |= {
        "train/kl_coefficient": module.kl.coefficient,
        "train/tokens": float(module.generated_tokens),
        "perf/rollout_tokens_per_s": (tokens + metrics.get("extra_tokens", 0.0)) / rollout_seconds,
        "perf/update_tokens_per_s": float(learned.lengths.sum()) / update_seconds,
    }
    if module.device.type == "cuda":
        values["perf/peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    for name, value in values.items():
        module.log(
            name, value, prog_bar=name in SHOWN, batch_size=len(batch.rows), sync_dist=module.trainer.world_size > 1
        )
