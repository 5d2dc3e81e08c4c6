"""Rewards for length and for words of reflection, which did not help in STILL-3's experiments (arXiv 2503.04548).

The paper adds L_i / L_max, or min(A_i, 20) / 20, to +1 for a right and -1 for a wrong answer. This equals a correctness
reward of weight 2 plus one of these rewards, because the constant -1 cancels with every group's baseline.
"""

import re
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError

#: the paper's words of a reasoning action
ACTIONS = ("however", "but", "wait", "verify", "alternatively")


def action_count(text: str, words: Sequence[str] = ACTIONS) -> int:
    """Number of occurrences of any of the words in a text, in any case."""
    return len(re.findall(rf"\b(?:{'|'.join(map(re.escape, words))})\b", text, re.IGNORECASE))


class LengthBonus(Reward):
    """L_i / L_max: length / scale, for every completion, right or wrong.

    Args:
        scale: L_max, in tokens; usually max_new_tokens.
        weight, name: as in every reward.
    """

    def __init__(self, scale: float, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if scale <= 0:
            raise ConfigError(f"LengthBonus: scale is {scale}; set it to a number of tokens above 0.")
        self.scale = scale

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return batch.lengths / self.scale


class ActionBonus(Reward):
    """min(A_i, most) / most, where A_i counts the words of reflection.

    Args:
        words: the counted words.
        most: count at which the reward reaches its maximum of 1.
        weight, name: as in every reward.
    """

    def __init__(
        self, words: Sequence[str] = ACTIONS, most: int = 20, weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(weight, name)
        if most < 1 or not words or not all(words):
            raise ConfigError(
                f"ActionBonus: needs words that are not empty and most >= 1, got {list(words)} and {most}."
            )
        self.words, self.most = tuple(words), most

    def score(self, batch: RolloutBatch) -> list[float]:
        return [min(action_count(text, self.words), self.most) / self.most for text in batch.completions]
