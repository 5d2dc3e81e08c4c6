"""The rewards that an environment gives for turns."""

from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rollouts import RolloutBatch, Turns
from support.errors import ConfigError


def turns_of(reward: Reward, batch: RolloutBatch) -> Turns:
    """The turns of a batch. Raises ConfigError if it was sampled without an environment."""
    if batch.turns is None:
        raise ConfigError(
            f"the reward {reward.name!r} ({type(reward).__name__}) reads what an environment gives for turns, but the "
            "completions come without one; set model.environment, or remove the reward."
        )
    return batch.turns


class TurnRewards(Reward):
    """The sum of the rewards that `model.environment` gave for a completion's turns.

    With `shaping.credit: turn` each turn's tokens learn from their own turn's part of it.

    Args:
        weight, name: as in every reward.
    """

    reads_turns = True

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return turns_of(self, batch).totals


class TurnReward(Reward):
    """The reward that the environment gave for one turn; NaN for completions without it.

    With `shaping.credit: turn` that turn's tokens learn from it.

    Args:
        turn: number of the turn, from 0.
        weight, name: as in every reward; the name is turn_<number> by default.
    """

    may_abstain = reads_turns = True

    def __init__(self, turn: int, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name or f"turn_{turn}")
        if turn < 0:
            raise ConfigError(f"{type(self).__name__}: turn is {turn}; turns are counted from 0.")
        self.turn: int = turn

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return turns_of(self, batch).rewards_of(self.turn)
