"""Completions whose first tokens the method draws itself, from another distribution than the policy's: they stay actions of the policy.

An engine takes forced tokens as given and leaves them out of the action mask. Here they come back into it, with the log-prob of the
distribution that drew them, so that the ratio on them is the right one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from policies import Policy
from rollouts.batch import RolloutBatch
from rollouts.engine import Prompts, padded_left

TOKENS_AT_ONCE = 4096  # of prompts in one forward


@dataclass
class FirstTokens:
    """First tokens of every completion, drawn by the method.

    Fields:
        tokens: of every row; an empty list leaves the row to the engine.
        logprobs: of each of them, under the distribution that drew it.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]

    def mark(self, batch: RolloutBatch) -> RolloutBatch:
        """The batch that an engine made with these as `forced`, with them as actions."""
        own = torch.zeros_like(batch.lengths)
        for row, (tokens, logprobs) in enumerate(zip(self.tokens, self.logprobs, strict=True)):
            count = own[row] = min(len(tokens), int(batch.lengths[row]))
            batch.action_mask[row, :count] = True
            batch.behaviour_logprobs[row, :count] = torch.tensor(
                logprobs[:count], device=batch.behaviour_logprobs.device
            )
        batch.own_first = own
        return batch


@torch.no_grad()
def next_token_logprobs(
    policy: Policy, prompts: Prompts, temperature: float = 1.0
) -> Float[Tensor, "prompts vocabulary"]:
    """The policy's distribution over the token that follows each prompt."""
    was_training = policy.model.training
    policy.model.eval()  # no dropout
    found = []
    try:
        size = max(1, TOKENS_AT_ONCE // max(map(len, prompts)))
        for start in range(0, len(prompts), size):
            ids, mask = padded_left(prompts[start : start + size], policy.pad_token_id, policy.device)
            positions = (mask.long().cumsum(1) - 1).clamp(min=0)
            logits = policy.model(
                input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False, logits_to_keep=1
            ).logits
            found.append((logits[:, -1].float() / temperature).log_softmax(-1))
    finally:
        policy.model.train(was_training)
    return torch.cat(found)
