"""Replay: every update also learns from prompt groups of earlier rollouts.

The importance ratio of a replayed token is pi / pi_old with the pi_old of the rollout that sampled it, so the clipped
surrogate bounds how far the policy may move from that one:

    python main.py fit --config configs/grpo.yaml --config replay.yaml
"""

import random
from typing import Any

import torch
from torch import Tensor

from lightning_modules import GRPO
from policies import PolicyParams
from rewards import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.seeding import derive_seed, run_seed


class ReplayGRPO(GRPO):
    """GRPO on the new rollout and on groups of earlier ones, drawn with equal probabilities.

    Args:
        policy, rewards, kwargs: as in GRPO.
        replayed: number of earlier prompt groups in every update.
        capacity: number of prompt groups that are kept; the oldest are dropped.
    """

    def __init__(
        self, policy: PolicyParams, rewards: list[Reward], *, replayed: int = 4, capacity: int = 32, **kwargs: Any
    ) -> None:
        if not 1 <= replayed <= capacity:
            raise ConfigError(
                f"ReplayGRPO: replayed is {replayed} and capacity {capacity}; set 1 <= replayed <= capacity."
            )
        super().__init__(policy, rewards, **kwargs)
        self.replayed, self.capacity = replayed, capacity
        self.buffer: list[tuple[RolloutBatch, Tensor]] = []  # one prompt each, with the log-probs of its policy
        self.fresh_rows, self.earlier_logprobs = 0, torch.zeros(0, 0)  # of the batch that is learned from

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise ConfigError("ReplayGRPO keeps its buffer in one process; set trainer.devices to 1.")
        super().setup(stage)

    def learned_from(self, batch: RolloutBatch) -> RolloutBatch:
        draw = random.Random(derive_seed(run_seed(), "replay", self.rollouts_done))
        earlier = draw.sample(self.buffer, min(self.replayed, len(self.buffer)))
        logprobs = self.sampled_logprobs(batch).detach().split(batch.group_size)
        self.buffer += [(batch.take([prompt]), values) for prompt, values in enumerate(logprobs)]
        self.buffer = self.buffer[-self.capacity :]
        both = RolloutBatch.concatenate([batch, *(group for group, _ in earlier)])
        self.fresh_rows = len(batch.lengths)
        self.earlier_logprobs = both.behaviour_logprobs.clone()
        for number, (_, values) in enumerate(earlier):
            first = self.fresh_rows + number * batch.group_size
            self.earlier_logprobs[first : first + len(values), : values.shape[1]] = values
        both.advantages = self.advantages(both)
        return both

    def behaviour(self, batch: RolloutBatch, rows: Tensor, sampled: Tensor) -> Tensor:
        is_earlier = (rows >= self.fresh_rows)[:, None]
        return torch.where(is_earlier, self.earlier_logprobs[rows, : sampled.shape[1]], sampled)

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        return {"replayed_rows": float(len(batch.lengths) - self.fresh_rows)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["replay"] = [(group.state_dict(), logprobs) for group, logprobs in self.buffer]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.buffer = [
            (RolloutBatch.from_state_dict(state, self.policy.decode, self.device), logprobs.to(self.device))
            for state, logprobs in checkpoint["replay"]
        ]
