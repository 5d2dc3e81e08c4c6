"""Validation and test of an on-policy module: sampled completions, their rewards, pass@k."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import total_reward
from rollouts import RolloutBatch, SamplingParams
from support.errors import ConfigError
from support.seeding import isolated_rng, run_seed

if TYPE_CHECKING:
    from lightning_modules.core.on_policy import OnPolicyModule


@dataclass
class Evaluation:
    """How validation and test sample.

    Args:
        samples: completions of every prompt.
        pass_k: the k of pass@k, at most `samples`. One number is logged as `pass@k`, a list such as [1, 4, 16] as `pass@1`, `pass@4`, `pass@16`.
        sampling: how they are drawn; the training's sampling if None.
        val_intervals: log 95 % bootstrap intervals over the problems in validation too; the test stage always has them.
    """

    samples: int = 1
    pass_k: int | list[int] | None = None
    sampling: SamplingParams | None = None
    val_intervals: bool = False

    def __post_init__(self) -> None:
        wanted = list(self.pass_ks.values())
        if self.samples < 1 or not all(1 <= k <= self.samples for k in wanted) or self.pass_k == []:
            raise ConfigError(
                f"evaluation.samples is {self.samples} and evaluation.pass_k is {self.pass_k}; needs samples >= 1 and 1 <= pass_k <= samples."
            )

    @property
    def pass_ks(self) -> dict[str, int]:
        """The wanted k by the metric's name."""
        if isinstance(self.pass_k, int):
            return {"pass@k": self.pass_k}
        return {f"pass@{k}": k for k in self.pass_k or []}

    def with_intervals(self, stage: str) -> bool:
        """Whether a stage logs intervals."""
        return stage == "test" or self.val_intervals


@torch.no_grad()
def evaluate(module: "OnPolicyModule", rows: list[dict[str, Any]], batch_idx: int, stage: str) -> RolloutBatch:
    """Sample, score and log one batch of an evaluation; draws depend on (seed, prompt) only, so evaluations compare."""
    with isolated_rng(stage, run_seed()):
        batch = module.sample(rows, module.evaluation.samples, module.evaluation.sampling or module.sampling)
        batch.rewards = module.score(batch)
    module.failure_counts.add(batch)

    def log(name: str, values: Tensor) -> None:
        values = values[~values.isnan()].float()
        if len(values):
            module.log(f"{stage}/{name}", values.mean(), batch_size=len(values), on_epoch=True, sync_dist=True)

    if module.rewards:
        log("reward", total_reward(module.rewards, batch.rewards, batch.failures))
    for name, scores in batch.rewards.items():
        log(module.metric_name(name), scores)
    log("length", batch.lengths)
    log("truncated", torch.tensor([reason == "length" for reason in batch.finish_reasons]))
    judge = next((reward for reward in module.rewards if reward.is_correctness), None)
    right = None if judge is None else judge.unscaled(batch.rewards[judge.name], batch)
    if module.thinking_stats is not None:
        module.thinking_stats.add(
            batch, None if right is None else torch.where(right.isnan(), torch.nan, (right >= 1).float())
        )
    if right is not None:
        judged = ~right.isnan().view(len(rows), -1).any(1)
        module.problem_counts.add(
            [row for row, known in zip(rows, judged.tolist(), strict=True) if known],
            (right >= 1).view(len(rows), -1)[judged],
        )
    return batch


def applicable_scores(module: "OnPolicyModule", batch: RolloutBatch) -> dict[str, Tensor]:
    """The scores of the rewards whose columns all rows have; all of the method's scores if that is every one. Prompts to predict need no answers."""
    known = []
    for reward in module.rewards:
        try:
            for row in batch.rows:
                reward.check_columns(row)
            known.append(reward)
        except ConfigError:
            continue
    return (
        module.score(batch) if len(known) == len(module.rewards) else {reward.name: reward(batch) for reward in known}
    )
