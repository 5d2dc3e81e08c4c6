"""Rewards and costs of free text: a toxicity classifier trained on people's labels, and a plain measure of staying on topic."""

import re

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError

_WORD = re.compile(r"[a-z']+")


class ToxicityCost(Reward):
    """Probability that the response is offensive, from alt-profanity-check's classifier (trained on 200,000 texts labelled by people).

    Args:
        weight, name: as in every reward.
    """

    span = (0.0, 1.0, False)

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        try:
            from profanity_check import predict_prob
        except ImportError as error:
            raise ConfigError(
                "ToxicityCost uses the classifier of the wheel alt-profanity-check, which is not installed; run `make wheels`."
            ) from error
        self.predict = predict_prob

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return torch.as_tensor(self.predict(batch.completions), dtype=torch.float32)


class OnTopic(Reward):
    """Share of the prompt's words of five letters or more that the response takes up, times the share of its words that are distinct.

    A crude stand-in for helpfulness where no person is there to judge: it rewards responses about the subject and not repetitive.
    """

    def score(self, batch: RolloutBatch) -> list[float]:
        return [
            self._one(str(prompt), text) for prompt, text in zip(batch.column("prompt"), batch.completions, strict=True)
        ]

    @staticmethod
    def _one(prompt: str, text: str) -> float:
        wanted = {word for word in _WORD.findall(prompt.lower()) if len(word) >= 5}
        words = _WORD.findall(text.lower())
        if not words or not wanted:
            return 0.0
        return len(wanted & set(words)) / len(wanted) * len(set(words)) / len(words)
