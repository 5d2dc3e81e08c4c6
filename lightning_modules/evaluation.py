"""Validation and test of an on-policy module: sampled completions, their rewards, pass@k."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import total_reward
from rollouts import RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.seeding import isolated_rng, run_seed

if TYPE_CHECKING:
    from lightning_modules.on_policy import OnPolicyModule


@dataclass
class Evaluation:
    """How validation and test sample.

    Args:
        samples: completions of every prompt. pass_k: the k of pass@k, at most `samples`.
        sampling: how they are drawn; the training's sampling if None.
    """

    samples: int = 1
    pass_k: int | None = None
    sampling: SamplingParams | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or (self.pass_k is not None and not 1 <= self.pass_k <= self.samples):
            raise ConfigError(
                f"evaluation.samples is {self.samples} and evaluation.pass_k is {self.pass_k}; needs samples >= 1 and 1 <= pass_k <= samples."
            )


def pass_at_k(correct: Tensor, k: int) -> Tensor:
    """1 - C(n - c, k) / C(n, k) for each problem, from n samples of which c are correct (Chen et al., arXiv 2107.03374, eq. 1).

    Args:
        correct: (problems, samples), bool.
    """
    n = correct.shape[1]
    values = [1.0 - math.comb(n - int(c), k) / math.comb(n, k) for c in correct.sum(1)]
    return torch.tensor(values, dtype=torch.float32)


@torch.no_grad()
def evaluate(module: "OnPolicyModule", rows: list[dict[str, Any]], batch_idx: int, stage: str) -> RolloutBatch:
    """Sample, score and log one batch of an evaluation; draws depend on (seed, rank, batch) only, so evaluations compare."""
    with isolated_rng(stage, run_seed(), module.global_rank, batch_idx):
        batch = module.sample(rows, module.evaluation.samples, module.evaluation.sampling or module.sampling)
        batch.rewards = module.score(batch)
    prompts = len(rows)

    def log(name: str, values: Tensor) -> None:
        values = values[~values.isnan()].float()
        if len(values):
            module.log(f"{stage}/{name}", values.mean(), batch_size=len(values), on_epoch=True, sync_dist=True, prog_bar=name == "pass@1")

    if module.rewards:
        log("reward", total_reward(module.rewards, batch.rewards))
    for name, scores in batch.rewards.items():
        log(module.metric_name(name), scores)
    log("length", batch.lengths)
    log("truncated", torch.tensor([reason == "length" for reason in batch.finish_reasons]))
    judge = next((reward.name for reward in module.rewards if reward.is_correctness), None)
    if module.thinking_stats is not None:
        module.thinking_stats.add(batch, None if judge is None else batch.rewards[judge] >= 1)
    if judge is not None:
        correct = (batch.rewards[judge] >= 1).view(prompts, -1)
        log("pass@1", correct.float().mean(1))
        if module.evaluation.pass_k is not None:
            log("pass@k", pass_at_k(correct, module.evaluation.pass_k))
        tasks = [str(row.get("task", "")) for row in rows]
        for task in sorted(set(tasks)) if len(set(tasks)) > 1 else []:
            log(f"pass@1/{task}", correct.float().mean(1)[torch.tensor([t == task for t in tasks])])
    return batch
