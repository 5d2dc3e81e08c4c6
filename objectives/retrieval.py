"""Scores of an embedder on held-out triplets."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from objectives.embedding_losses import Vectors

#: margins by which the positive must be more similar
MARGINS = (0.0, 0.1, 0.3)
#: numbers of passages among which a right one must be
RANKS = (1, 5)


def triplet_scores(anchors: Vectors, positives: Vectors, negatives: Vectors) -> dict[str, float]:
    """Fraction of triplets with cos(a, p) > cos(a, n) + margin by margin, and the mean gap of both.

    Guessing gives 0.5 at margin 0.
    """
    gap = (anchors * positives).sum(1) - (anchors * negatives).sum(1)
    return {f"accuracy@{margin:g}": float((gap > margin).float().mean()) for margin in MARGINS} | {
        "gap": float(gap.mean())
    }


def recall(queries: Vectors, passages: Vectors, same: Float[Tensor, "queries passages"]) -> dict[str, float]:
    """Fraction of queries with a right passage among the k most similar ones.

    Args:
        same: above 0 where a passage is right for a query. Queries without a right passage are left out.
    """
    ranked = (same > 0).gather(1, (queries @ passages.T).argsort(1, descending=True))[(same > 0).any(1)]
    return {f"recall@{k}": float(ranked[:, :k].any(1).float().mean()) for k in RANKS if k < ranked.shape[1]}


def alignment_and_uniformity(anchors: Vectors, positives: Vectors) -> dict[str, float]:
    """Mean squared distance of pairs, and the log of the mean of exp(-2 |x - y|^2) over different texts."""
    texts = torch.cat([anchors, positives]).double()
    squared = torch.pdist(texts).square()
    return {
        "alignment": float((anchors - positives).square().sum(1).mean()),
        "uniformity": float((-2 * squared).exp().mean().log()),
    }


def same_concept(queries: Sequence[str], passages: Sequence[str]) -> Float[Tensor, "queries passages"]:
    """1 where query and passage have the same concept."""
    return torch.tensor([[float(one == other) for other in passages] for one in queries])
