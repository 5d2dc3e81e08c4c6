"""The rewards that an environment gives for turns."""

from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError


class TurnRewards(Reward):
    """The sum of the rewards that `model.environment` gave for a completion's turns.

    With `shaping.credit: turn` each turn's tokens learn from their own turn's part of it.

    Args:
        weight, name: as in every reward.
    """

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        if batch.turns is None:
            raise ConfigError(
                f"the reward {self.name!r} (TurnRewards) sums what an environment gives for turns, but the completions "
                "come without one; set model.environment, or remove the reward."
            )
        return batch.turns.totals
