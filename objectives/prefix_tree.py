"""T-SPMO's advantages: the value of single tokens, from the prefix tree of a prompt's completions (arXiv 2504.20834).

Completions with the same prefix share a path. For the edge from prefix p to token v, A(v | p) is the mean reward of the
completions that begin with p and v, minus that of those that begin with p. The objective is the mean of
pi(v | p) A(v | p) over the edges with A other than zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.advantages import Advantage
from objectives.policy_losses import Metrics, PolicyLoss
from objectives.shapes import Groups, PerRow, PerToken, TokenIds, TokenMask
from objectives.statistics import as_floats


@dataclass
class PrefixTree(Advantage):
    """A(v | p) at the edge's place in one of the completions that share it, so that each edge counts once; 0 elsewhere.

    Tokens that the policy did not sample are part of prefixes but not edges. Completions with NaN are ignored. Metrics:
    `train/edges`, the number of edges with an advantage other than zero, and `train/edge_depth`, their mean distance
    from the first token, in tokens.
    """

    def __call__(
        self, rewards: PerRow, groups: Groups, tokens: TokenIds | None = None, mask: TokenMask | None = None
    ) -> PerToken:
        tokens, mask = self.tokens_and_mask(tokens, mask)
        rewards = as_floats(rewards)
        advantages = torch.zeros(mask.shape, dtype=rewards.dtype, device=rewards.device)
        steps = torch.arange(mask.shape[1], device=mask.device)
        last = (
            torch.where(mask, steps, -1).amax(1).masked_fill(rewards.isnan(), -1)
        )  # place of each row's last chosen token
        nodes, vocabulary = groups, int(tokens.max()) + 1
        for depth in range(int(last.max()) + 1):
            rows = torch.nonzero(last >= depth).flatten()
            parents, values = nodes[rows], rewards[rows].double()
            edges, children = torch.unique(parents * vocabulary + tokens[rows, depth], return_inverse=True)
            order = torch.arange(len(rows), device=rows.device)
            first = torch.full_like(edges, len(rows)).scatter_reduce(0, children, order, "amin")
            gain = (_means(values, children)[children] - _means(values, parents)[parents])[first]
            gain = torch.where(
                (gain.abs() < 1e-9) | ~mask[rows[first], depth], 0.0, gain
            )  # equal means differ by rounding
            advantages[rows[first], depth] = gain.to(advantages.dtype)
            nodes = nodes.index_put((rows,), children)
            if len(edges) == len(rows):
                break  # every completion is alone on its path, so no further edge has an advantage
        depths = torch.nonzero(advantages)[:, 1].double()
        count, total = self.reduce(torch.stack([depths.new_tensor(len(depths)), depths.sum()])).tolist()
        self.metrics = {"edges": count, "edge_depth": total / max(count, 1)}
        return advantages


def _means(values: Tensor, index: Tensor) -> Tensor:
    size = int(index.max()) + 1
    sums = torch.zeros(size, dtype=values.dtype, device=values.device).index_add_(0, index, values)
    return sums / torch.bincount(index, minlength=size).clamp(min=1)


@dataclass
class Probability(PolicyLoss):
    """-A pi: the token's probability, not its logarithm, so that unlikely tokens have small gradients (T-SPMO)."""

    zero_advantage_has_no_gradient = True

    def __call__(
        self, logprobs: PerToken, behaviour_logprobs: PerToken, advantages: PerToken, mask: TokenMask
    ) -> tuple[PerToken, Metrics]:
        return -advantages * torch.where(mask, logprobs, 0.0).exp(), {}
