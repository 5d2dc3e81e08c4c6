"""Rewards and costs from a trained model."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from policies.scorer import Scorer, load_scorer
from rewards.base import Reward
from rollouts import RolloutBatch

Scale = Literal["raw", "probability", "unsafe"]
#: (smallest score, largest score, whether only these two occur)
SPANS: dict[Scale, tuple[float, float, bool]] = {
    "raw": (-math.inf, math.inf, False),
    "probability": (0.0, 1.0, False),
    "unsafe": (0.0, 1.0, True),
}


class ModelScore(Reward):
    """The score of a reward or cost model.

    Args:
        model: the folder of a trained model, or a loaded scorer.
        scale: raw uses the scores; probability their sigmoid, in (0, 1); unsafe 1 above zero and 0 otherwise.
        weight, name: as in every reward.
    """

    def __init__(self, model: str | Scorer, scale: Scale = "raw", weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.scorer = load_scorer(model)[0] if isinstance(model, str) else model
        self.scale, self.span = scale, SPANS[scale]

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        self.scorer.to(batch.completion_ids.device)
        finished = [reason == "eos" for reason in batch.finish_reasons]
        scores = self.scorer.score(batch.column("prompt"), batch.completions, finished)
        if self.scale == "unsafe":
            return (scores > 0).float()
        return torch.sigmoid(scores) if self.scale == "probability" else scores
