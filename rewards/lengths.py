"""Rewards about the length of a completion."""

from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError


class LengthPenalty(Reward):
    """-length / scale for every completion, right or wrong: a price per token.

    Args:
        scale: number of tokens that cost 1 (times the weight); usually max_new_tokens.
        weight, name: as in every reward.
    """

    def __init__(self, scale: float, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if scale <= 0:
            raise ConfigError(f"LengthPenalty: scale is {scale}; set it to a number of tokens above 0.")
        self.scale = scale

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return -batch.lengths / self.scale


class SoftOverlong(Reward):
    """0 up to max_length - cache tokens, then falling linearly to -1 at max_length.

    DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13.

    Args:
        max_length: maximum length of a completion, usually `max_new_tokens` (20480 in the paper).
        cache: number of tokens over which it falls (4096 in the paper).
        weight, name: as in every reward.
    """

    def __init__(self, max_length: int, cache: int, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if not 0 < cache <= max_length:
            raise ConfigError(
                f"SoftOverlong: needs 0 < cache <= max_length, got cache={cache} and max_length={max_length}."
            )
        self.max_length, self.cache = max_length, cache

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return ((self.max_length - self.cache - batch.lengths) / self.cache).clamp(-1.0, 0.0)
