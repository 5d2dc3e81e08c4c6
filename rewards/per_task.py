"""Separate rewards for the task families of a mixture."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Failure, Reward
from rewards.failures import inner_scores, lowest_rate
from rewards.self_check import GoldProblem
from rollouts import RolloutBatch
from support.errors import ConfigError


def family(row: dict[str, Any]) -> str:
    """A row's `task`, without the level that a curriculum appends to it."""
    task = str(row.get("task"))
    return task if row.get("level") is None else task.removesuffix(f"-{row['level']}")


class Abstain(Reward):
    """NaN for every completion: in `PerTask`, the reward of a task that another reward of the list scores."""

    is_correctness = may_abstain = True

    def score(self, batch: RolloutBatch) -> list[float]:
        return [math.nan] * len(batch.finish_reasons)


class PerTask(Reward):
    """Scores each row by the reward of its task, times a scale, so that families of different range share one run.

    pass@k and pass rates use the scores before scaling.

    Args:
        rewards: task -> the reward that scores it; "default" for all other tasks.
        scales: task -> factor above 0; 1 by default.
        weight, name: as in every reward; weights and names of the families' rewards are not used.

    Raises:
        ConfigError: for a task without a reward (before anything is sampled), a scale that is not positive or has no
            reward, or a weight on a family's reward.
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
            raise ConfigError("PerTask has no rewards; set one for each task, or a `default`.")
        if weighted := [task for task, reward in rewards.items() if reward.weight != 1]:
            raise ConfigError(
                f"PerTask: the reward of {weighted[0]!r} has a weight, which would not act; scale the family with "
                "`scales`."
            )
        for task, scale in self.scales.items():
            if scale <= 0 or not (task in rewards or "default" in rewards):
                raise ConfigError(
                    f"PerTask: scales needs a factor above 0 for a task that has a reward, got {task}: {scale}; "
                    f"rewards are for {sorted(rewards)}."
                )
        self.may_abstain = any(reward.may_abstain for reward in rewards.values())
        self.is_correctness = all(reward.is_correctness for reward in rewards.values())
        self.waits = any(reward.waits for reward in rewards.values())
        self.max_failure_rate = lowest_rate(list(rewards.values()))

    def _for(self, task: str) -> Reward:
        reward = self.rewards.get(task, self.rewards.get("default"))
        if reward is None:
            raise ConfigError(
                f"the reward {self.name!r} (PerTask) has none for the task {task!r}, only for {sorted(self.rewards)}; "
                "add it, or a `default`."
            )
        return reward

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
            part = batch.take([i for i, name in enumerate(tasks) if name == task])
            rows = torch.tensor([tasks[i] == task for i in batch.groups.tolist()], device=values.device)
            scores, failures = inner_scores(self._for(task), part)
            values[rows] = scores.to(values.device)
            places = rows.nonzero().flatten().tolist()
            failed |= {places[row]: failure for row, failure in failures.items()}
        values = values * self._scales(batch)
        return [failed.get(row, value) for row, value in enumerate(values.tolist())] if failed else values

    @property
    def parts(self) -> list[Reward]:
        return list(self.rewards.values())

    def parts_for(self, row: dict[str, Any]) -> list[Reward]:
        return [self._for(family(row))]

    def unscaled(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return self._by_task(self.without_scale(scores, batch), batch, "unscaled")

    def without_scale(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return self._by_task(scores / self._scales(batch).to(scores.device), batch, "without_scale")

    def _by_task(
        self, scores: Float[Tensor, "rows"], batch: RolloutBatch, method: Literal["unscaled", "without_scale"]
    ) -> Float[Tensor, "rows"]:
        """The scores as each family's reward converts them."""
        result, tasks = scores.clone(), [family(row) for row in batch.rows]
        for task in sorted(set(tasks)):
            part = batch.take([i for i, name in enumerate(tasks) if name == task])
            rows = torch.tensor([tasks[i] == task for i in batch.groups.tolist()], device=scores.device)
            result[rows] = getattr(self._for(task), method)(scores[rows], part)
        return result

    def extracted(self, batch: RolloutBatch) -> list[str]:
        texts, tasks = [""] * batch.completion_ids.shape[0], [family(row) for row in batch.rows]
        for task in sorted(set(tasks)):
            part = batch.take([i for i, name in enumerate(tasks) if name == task])
            places = [row for row, prompt in enumerate(batch.groups.tolist()) if tasks[prompt] == task]
            for row, text in zip(places, self._for(task).extracted(part), strict=True):
                texts[row] = text
        return texts

    def self_check(self, rows: Sequence[dict[str, Any]]) -> list[GoldProblem]:
        by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_task[family(row)].append(row)
        return [problem for task, part in by_task.items() for problem in self._for(task).self_check(part)]

    def check_columns(self, row: dict[str, Any]) -> None:
        self._for(family(row)).check_columns(row)

    def observe(self, batch: RolloutBatch) -> None:
        tasks = [family(row) for row in batch.rows]
        for task in sorted(set(tasks)):
            self._for(task).observe(batch.take([i for i, name in enumerate(tasks) if name == task]))

    def state_dict(self) -> dict[str, Any]:
        return {task: reward.state_dict() for task, reward in self.rewards.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for task, reward in self.rewards.items():
            reward.load_state_dict(state.get(task, {}))
