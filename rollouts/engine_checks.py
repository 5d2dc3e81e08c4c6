"""Comparison of recorded log-probs with plain forwards, which an engine makes on its first completions."""

import torch
from torch import Tensor

from policies import Policy
from policies.logprobs import model_logits
from rollouts.engine import full_precision, warpers
from rollouts.sampling import SamplingParams


@torch.no_grad()
def recorded_gap(
    policy: Policy,
    prompts: list[list[int]],
    completions: Tensor,
    logprobs: Tensor,
    lengths: Tensor,
    forced: Tensor,
    sampling: SamplingParams,
) -> float:
    """Largest mean difference of recorded log-probs from those of unpadded forwards.

    Looks at the longest sequence and at the longest completion of the shortest prompt.

    Args:
        prompts: one per row.
        completions, logprobs: (rows, time).
        lengths: (rows,), tokens of each completion.
        forced: as from padded_forced; these tokens are left out, because they were not sampled.
    """
    sizes = [(len(prompt), int(length)) for prompt, length in zip(prompts, lengths.tolist(), strict=True)]
    longest = max(range(len(sizes)), key=lambda row: sum(sizes[row]))
    shortest = min(range(len(sizes)), key=lambda row: (sizes[row][0], -sizes[row][1]))
    gaps = []
    for row in {longest, shortest}:
        tokens = completions[row, : sizes[row][1]]
        ids = torch.cat([torch.tensor(prompts[row], device=tokens.device), tokens])[None]
        logits = model_logits(policy.model, ids, keep=len(tokens) + 1)[0, :-1].float()
        expected = warpers(sampling)(ids, logits).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        sampled = torch.ones_like(tokens, dtype=torch.bool)
        sampled[: forced.shape[1]] = forced[row, : len(tokens)] < 0
        gaps.append(float((logprobs[row, : len(tokens)] - expected)[sampled].abs().mean().nan_to_num()))
    return max(gaps)


def allowed_gap(policy: Policy) -> float:
    """The largest difference that rounding may cause."""
    return 1e-3 if full_precision(policy) else 0.2
