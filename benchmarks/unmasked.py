"""The arm of CoRT's experiment that learns from the environment's tokens too, as if the policy had chosen them."""

from typing import Any

from lightning_modules import GRPO
from lightning_modules.core.micro_batches import batch_logprobs
from rollouts import RolloutBatch


class Unmasked(GRPO):
    """GRPO without the mask of outputs."""

    def rollout(self, rows: list[dict[str, Any]]) -> RolloutBatch:
        batch = super().rollout(rows)
        batch.action_mask = batch.completion_mask.clone()
        batch.behaviour_logprobs = batch_logprobs(self.policy, batch, self.temperature, self.update_token_budget)
        return batch
