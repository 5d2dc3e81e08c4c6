"""Metrics of a rollout under the names that all methods share."""

from typing import TYPE_CHECKING

import torch

from rewards import total_reward
from rollouts import RolloutBatch

if TYPE_CHECKING:
    from lightning_modules.on_policy import OnPolicyModule

SHOWN = {"train/reward", "train/length", "train/kl", "perf/rollout_tokens_per_s"}


def log_rollout(
    module: "OnPolicyModule", batch: RolloutBatch, metrics: dict[str, float], rollout_seconds: float, update_seconds: float
) -> None:
    """Log one rollout and its updates; `metrics` are the update's own."""
    tokens, learned = float(batch.lengths.sum()), module.last_rollout or batch
    values = {f"train/{name}": value for name, value in metrics.items()}
    values |= {f"train/{module.metric_name(name)}": float(scores.nanmean()) for name, scores in batch.rewards.items()}
    if module.rewards:
        values["train/reward"] = float(total_reward(module.rewards, batch.rewards, batch.failures).nanmean())
    values |= {
        "train/length": tokens / len(batch.finish_reasons),
        "train/truncated": batch.finish_reasons.count("length") / len(batch.finish_reasons),
        "train/kl_coefficient": module.kl.coefficient,
        "perf/rollout_tokens_per_s": (tokens + metrics.get("extra_tokens", 0.0)) / rollout_seconds,
        "perf/update_tokens_per_s": float(learned.lengths.sum()) / update_seconds,
    }
    if module.device.type == "cuda":
        values["perf/peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    for name, value in values.items():
        module.log(name, value, prog_bar=name in SHOWN, batch_size=len(batch.rows), sync_dist=module.trainer.world_size > 1)
