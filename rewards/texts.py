"""Rewards and costs of free text: a toxicity classifier trained on human labels, and a simple measure of relevance."""

import re

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError

_WORD = re.compile(r"[a-z']+")


class ToxicityCost(Reward):
    """Probability that the response is offensive, by alt-profanity-check's classifier (200,000 human-labelled texts).

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
                "ToxicityCost uses the classifier of the wheel alt-profanity-check, which is not installed; run `make "
                "wheels`."
            ) from error
        self.predict = predict_prob

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return torch.as_tensor(self.predict(batch.completions), dtype=torch.float32)


class OnTopic(Reward):
    """Fraction of the prompt's words of five or more letters in the response, times the fraction of distinct words.

    A crude proxy for helpfulness without human judgement: it rewards responses about the subject that do not repeat
    themselves.
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
