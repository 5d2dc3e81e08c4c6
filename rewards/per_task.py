"""A reward of its own for every task family of a mixture."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import FAILURES, Failure, Reward
from rollouts import RolloutBatch
from support.errors import ConfigError


def family(row: dict[str, Any]) -> str:
    """A row's `task`, without the level that a curriculum appends to it."""
    task = str(row.get("task"))
    return task if row.get("level") is None else task.removesuffix(f"-{row['level']}")


class PerTask(Reward):
    """Each row is scored by the reward that its task names, times a scale: families of different difficulty or range share one run.

    pass@k and pass rates are those of the scores before scaling.

    Args:
        rewards: task -> the reward that scores it; "default" for tasks that are not named.
        scales: task -> factor above 0, 1 where none is given.
        weight, name: as in every reward; those of the families' rewards are not used.

    Raises:
        ConfigError: for a task without a reward, before anything is sampled, a scale that is not positive or that no reward serves, or a weight on a
            family's reward.
    """

    def __init__(
        self,
        rewards: dict[str, Reward],
        scales: dict[str, float] | None = None,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.rewards, self.scales = rewards, scales or {}
        if not rewards:
            raise ConfigError("PerTask has no rewards; name one for each task, or a `default`.")
        if weighted := [task for task, reward in rewards.items() if reward.weight != 1]:
            raise ConfigError(
                f"PerTask: the reward of {weighted[0]!r} has a weight, which would not act; scale the family with `scales`."
            )
        for task, scale in self.scales.items():
            if scale <= 0 or not (task in rewards or "default" in rewards):
                raise ConfigError(
                    f"PerTask: scales needs a factor above 0 for a task that has a reward, got {task}: {scale}; rewards are for {sorted(rewards)}."
                )
        self.may_abstain = any(reward.may_abstain for reward in rewards.values())
        self.is_correctness = all(reward.is_correctness for reward in rewards.values())
        self.waits = any(reward.waits for reward in rewards.values())
        rates = [reward.max_failure_rate for reward in rewards.values() if reward.max_failure_rate is not None]
        self.max_failure_rate = min(rates, default=None)

    def _for(self, task: str) -> Reward:
        found = self.rewards.get(task, self.rewards.get("default"))
        if found is None:
            raise ConfigError(
                f"the reward {self.name!r} (PerTask) has none for the task {task!r}, only for {sorted(self.rewards)}; add it, or a `default`."
            )
        return found

    def _scales(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return torch.tensor(
            [self.scales.get(family(batch.rows[i]), 1.0) for i in batch.groups.tolist()],
            device=batch.completion_ids.device,
        )

    def score(self, batch: RolloutBatch) -> Sequence[float | Failure] | Float[Tensor, "rows"]:
        tasks = [family(row) for row in batch.rows]
        values = torch.zeros(batch.completion_ids.shape[0], device=batch.completion_ids.device)
        failed: dict[int, Failure] = {}
        for task in sorted(set(tasks)):
            part = batch.take([i for i, found in enumerate(tasks) if found == task])
            rows = torch.tensor([tasks[i] == task for i in batch.groups.tolist()], device=values.device)
            reward = self._for(task)
            values[rows] = reward(part).to(values.device)
            if reward.name in part.failures:
                kinds = dict(zip(rows.nonzero().flatten().tolist(), part.failures[reward.name].tolist(), strict=True))
                names = {number: kind for kind, number in FAILURES.items()}
                failed |= {row: Failure(names[kind], reward.last_failure) for row, kind in kinds.items() if kind}
        values = values * self._scales(batch)
        return [failed.get(row, value) for row, value in enumerate(values.tolist())] if failed else values

    def unscaled(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return scores / self._scales(batch).to(scores.device)

    def check_columns(self, row: dict[str, Any]) -> None:
        self._for(family(row)).check_columns(row)

    def observe(self, batch: RolloutBatch) -> None:
        tasks = [family(row) for row in batch.rows]
        for task in sorted(set(tasks)):
            self._for(task).observe(batch.take([i for i, found in enumerate(tasks) if found == task]))

    def state_dict(self) -> dict[str, Any]:
        return {task: reward.state_dict() for task, reward in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for task, reward in self.rewards.items():
            reward.load_state_dict(state.get(task, {}))
