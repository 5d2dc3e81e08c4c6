"""Losses on the vectors of anchors, positives and negatives (T-VEC, arXiv 2504.16460, and its peers).

Triplet: mean max(0, d(a, p) - d(a, n) + margin), with d = 1 - cos or the Euclidean distance.
Multiple negatives ranking: cross-entropy of softmax_j(scale * cos(a_i, c_j)), where the candidates c are all positives
and negatives of the batch and the right one is a_i's own positive.

Vectors have length 1, so both distances are at most 2.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from support.errors import ConfigError

Vectors = Float[Tensor, "rows width"]


def cosine_distance(first: Vectors, second: Vectors) -> Float[Tensor, "rows"]:
    """1 - cos of unit vectors, row by row, 0 to 2."""
    return 1 - (first * second).sum(1)


def euclidean_distance(first: Vectors, second: Vectors) -> Float[Tensor, "rows"]:
    """Length of the difference, row by row; its gradient is finite where both are equal."""
    return ((first - second).square().sum(1) + 1e-12).sqrt()


DISTANCES = {"cosine": cosine_distance, "euclidean": euclidean_distance}


class EmbeddingLoss(ABC):
    """A loss of the vectors of a batch."""

    #: whether the loss compares triplets with each other, so that processes must exchange their vectors
    compares_rows: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, anchors: Vectors, positives: Vectors, negatives: Vectors) -> tuple[Tensor, Tensor]:
        """(mean loss, fraction of anchors that still have something to learn). Row i of each belongs to triplet i."""


@dataclass
class TripletMargin(EmbeddingLoss):
    """Hinge on the difference of two distances.

    Args:
        distance: cosine (1 - cos) or euclidean.
        margin: by how much the positive must be nearer; above 0 and below 2, because a larger one than the largest
            distance keeps every triplet active for ever. The paper does not state it.
    """

    distance: Literal["cosine", "euclidean"] = "cosine"
    margin: float = 0.3

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES or not 0 < self.margin < 2:
            raise ConfigError(
                f"TripletMargin has distance {self.distance!r} and margin {self.margin}. Set model.loss.distance to "
                "cosine or euclidean, and model.loss.margin above 0 and below 2, the largest distance of unit vectors."
            )

    def __call__(self, anchors: Vectors, positives: Vectors, negatives: Vectors) -> tuple[Tensor, Tensor]:
        distance = DISTANCES[self.distance]
        hinge = (distance(anchors, positives) - distance(anchors, negatives) + self.margin).clamp(min=0)
        return hinge.mean(), (hinge > 0).float().mean()


@dataclass
class MultipleNegatives(EmbeddingLoss):
    """Every other positive and all negatives of the batch are negatives of an anchor.

    Args:
        scale: factor of the cosines, the inverse of a temperature.
    """

    scale: float = 20.0

    compares_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ConfigError(
                f"MultipleNegatives: scale is {self.scale}; set model.loss.scale to a finite number above 0."
            )

    def __call__(self, anchors: Vectors, positives: Vectors, negatives: Vectors) -> tuple[Tensor, Tensor]:
        logits = self.scale * anchors @ torch.cat([positives, negatives]).T
        labels = torch.arange(len(anchors), device=anchors.device)
        return cross_entropy(logits, labels), (logits.argmax(1) != labels).float().mean()
