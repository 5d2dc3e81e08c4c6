"""First tokens that the method draws from another distribution than the policy's, as actions of the policy.

An engine leaves forced tokens out of the action mask. `FirstTokens.mark` puts them back into it, with their log-prob
under the distribution that drew them, so that the importance ratio on them is right.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from policies import Policy
from policies.logprobs import model_logits
from policies.modes import evaluation_mode
from rollouts.batch import RolloutBatch
from rollouts.engine import Prompts, padded_left, padded_together

TOKENS_AT_ONCE = 4096  # maximum number of prompt tokens in one forward


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
        """Make these tokens actions in a batch that an engine generated with them as `forced`; changes the batch."""
        counts = torch.zeros_like(batch.lengths)
        for row, (tokens, logprobs) in enumerate(zip(self.tokens, self.logprobs, strict=True)):
            count = counts[row] = min(len(tokens), int(batch.lengths[row]))
            batch.action_mask[row, :count] = True
            batch.behaviour_logprobs[row, :count] = torch.tensor(
                logprobs[:count], device=batch.behaviour_logprobs.device
            )
        batch.own_first = counts
        return batch


@torch.no_grad()
def next_token_logprobs(
    policy: Policy, prompts: Prompts, temperature: float = 1.0
) -> Float[Tensor, "prompts vocabulary"]:
    """Log-probs of the policy's distribution over the token that follows each prompt."""
    policy.check(prompts)
    size = max(1, TOKENS_AT_ONCE // max(map(len, prompts)))
    parts, order = [], []
    with evaluation_mode(policy.model):
        for rows in padded_together([len(prompt) for prompt in prompts], policy.scoring == "by_length", size):
            ids, mask = padded_left([prompts[row] for row in rows], policy.pad_token_id, policy.device)
            logits = model_logits(policy.model, ids, mask)
            parts.append((logits[:, -1].float() / temperature).log_softmax(-1))
            order += rows
    return torch.cat(parts)[torch.tensor(order, device=policy.device).argsort()]
