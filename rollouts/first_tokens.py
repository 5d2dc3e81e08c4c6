"""First tokens that the method draws from another distribution than the policy's, as actions of the policy.

An engine leaves forced tokens out of the action mask. `FirstTokens.mark` puts them back into it, with their log-prob
under the distribution that drew them, so that the importance ratio on them is right.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from policies import Policy
from policies.compute import computing
from policies.logprobs import model_logits
from policies.modes import evaluation_mode
from rollouts.batch import RolloutBatch
from rollouts.engine import REASONS, Endings, Prompts, padded_left, padded_together
from rollouts.sampling import SamplingParams

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


def ended_by_own_tokens(batch: RolloutBatch, policy: Policy, sampling: SamplingParams) -> RolloutBatch:
    """The batch, with completions cut that end within the first tokens that the method drew, or by their help.

    To the engine these tokens were forced, and so did not end a completion. They are the policy's own, so an end token
    among them ends it, and so does a stop string that they begin.
    """
    if batch.own_first is None:
        return batch
    endings = Endings(policy, sampling.stop, torch.zeros(len(batch.lengths), 0, dtype=torch.long, device=policy.device))
    limits, reasons = batch.lengths.clone(), torch.zeros_like(batch.lengths)
    last = int(batch.own_first.max()) + endings.reach
    for length in range(1, min(last, batch.completion_ids.shape[1]) + 1):
        rows = ((batch.own_first > 0) & (reasons == 0) & (batch.lengths >= length)).nonzero()[:, 0]
        reasons[rows] = endings(batch.completion_ids, torch.full_like(rows, length), rows)
        limits[rows] = torch.where(reasons[rows] > 0, length, limits[rows])
    cut = batch.cut(limits)
    cut.finish_reasons = [
        REASONS[early] if early else reason
        for early, reason in zip(reasons.tolist(), batch.finish_reasons, strict=True)
    ]
    return cut


@torch.no_grad()
def next_token_logprobs(
    policy: Policy, prompts: Prompts, temperature: float = 1.0
) -> Float[Tensor, "prompts vocabulary"]:
    """Log-probs of the policy's distribution over the token that follows each prompt."""
    policy.check(prompts)
    size = max(1, TOKENS_AT_ONCE // max(map(len, prompts)))
    parts, order = [], []
    with evaluation_mode(policy.model), computing(policy):
        for rows in padded_together([len(prompt) for prompt in prompts], policy.scoring == "by_length", size):
            ids, mask = padded_left([prompts[row] for row in rows], policy.pad_token_id, policy.device)
            logits = model_logits(policy.model, ids, mask)
            parts.append((logits[:, -1].float() / temperature).log_softmax(-1))
            order += rows
    return torch.cat(parts)[torch.tensor(order, device=policy.device).argsort()]
