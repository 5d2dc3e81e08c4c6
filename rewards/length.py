"""A plain price on tokens: what methods that choose when to think are compared with."""

from rewards.base import Reward
from support.errors import ConfigError


class LengthPenalty(Reward):
    """-length / scale, for every completion, right or wrong.

    Args:
        scale: tokens that cost 1 (times the weight); usually max_new_tokens.
        weight, name: as in every reward.
    """

    def __init__(self, scale: float, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if scale <= 0:
            raise ConfigError(f"LengthPenalty: scale is {scale}; it is a number of tokens above 0.")
        self.scale = scale

    def score(self, batch):
        return (-batch.lengths / self.scale).tolist()
