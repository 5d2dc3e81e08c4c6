"""Generation and slow rewards at the same time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from rewards import Reward
from rollouts import RolloutBatch

Rows = list[dict[str, Any]]


def overlapped_rollout(
    rollout: Callable[[Rows], RolloutBatch], rows: Rows, rewards: list[Reward], prompts_at_once: int
) -> RolloutBatch:
    """Generate part by part; rewards that wait for others score one part on a thread while the next is generated.

    Every part begins with the generator of the first, so that draws do not depend on how the rows are divided.

    Args:
        rewards: all rewards; those that do not wait are left to the caller.
        prompts_at_once: number of prompts per part.

    Returns:
        The whole batch, with the scores of the rewards that wait.
    """
    waiting = [reward for reward in rewards if reward.waits]
    if not waiting or prompts_at_once >= len(rows):
        return rollout(rows)
    parts = []
    with ThreadPoolExecutor(len(waiting) * 2) as pool:
        scores, generator = [], torch.get_rng_state()
        for start in range(0, len(rows), prompts_at_once):
            torch.set_rng_state(generator)
            part = rollout(rows[start : start + prompts_at_once])
            parts.append(part)
            scores.append({reward.name: pool.submit(reward, part) for reward in waiting})
        for part, futures in zip(parts, scores, strict=True):
            part.rewards = {name: future.result() for name, future in futures.items()}
    return RolloutBatch.concatenate(parts)
