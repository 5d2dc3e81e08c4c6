"""A reward of its own for every task family of a mixture."""

import torch

from rewards.base import Reward
from support.errors import ConfigError


class PerTask(Reward):
    """Each row is scored by the reward that its `task` names, times a scale: families of different difficulty or range share one run.

    Args:
        rewards: task -> the reward that scores it; "default" for tasks that are not named.
        scales: task -> factor, 1 where none is given. A scaled score counts as correct only from 1 on, so scale with `weight` inside a family's
            reward where pass@k should not change.
        weight, name: as in every reward.

    Raises:
        ConfigError: for a task without a reward, before anything is sampled.
    """

    is_correctness = True

    def __init__(
        self, rewards: dict[str, Reward], scales: dict[str, float] | None = None, weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if not rewards:
            raise ConfigError("PerTask has no rewards; name one for each task, or a `default`.")
        self.rewards, self.scales = rewards, scales or {}
        self.may_abstain = any(reward.may_abstain for reward in rewards.values())

    def _for(self, task: str) -> Reward:
        found = self.rewards.get(task, self.rewards.get("default"))
        if found is None:
            raise ConfigError(
                f"the reward {self.name!r} (PerTask) has none for the task {task!r}, only for {sorted(self.rewards)}; add it, or a `default`."
            )
        return found

    def score(self, batch):
        tasks = [str(row.get("task")) for row in batch.rows]
        values = torch.zeros(batch.completion_ids.shape[0], device=batch.completion_ids.device)
        for task in sorted(set(tasks)):
            prompts = [i for i, found in enumerate(tasks) if found == task]
            rows = torch.tensor([tasks[i] == task for i in batch.groups.tolist()], device=values.device)
            values[rows] = self.scales.get(task, 1.0) * self._for(task)(batch.take(prompts)).to(values.device)
        return values

    def check_columns(self, row):
        self._for(str(row.get("task"))).check_columns(row)
