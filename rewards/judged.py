"""The base class of rewards that read which completions are right from another reward."""

from jaxtyping import Bool
from torch import Tensor

from rewards.base import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.processes import means


class JudgedReward(Reward):
    """A reward that depends on which completions are right.

    Args:
        correctness: name of the reward that judges this, listed before this one in `model.rewards`; a score of 1 or
            more, before any scale, is right.
        weight, name: as in every reward.
    """

    def __init__(self, correctness: str = "exact_answer", weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.correctness = correctness

    def given(self, batch: RolloutBatch) -> Tensor:
        """The unchanged scores (rows,) of the correctness reward. Raises ConfigError if it is not listed before."""
        if self.correctness not in batch.rewards:
            raise ConfigError(
                f"the reward {self.name!r} ({type(self).__name__}) reads which completions are right from a reward "
                f"named {self.correctness!r}, but those before it in model.rewards are {list(batch.rewards)}; list "
                "that reward before it, or set its `correctness` to one of these names."
            )
        return batch.rewards[self.correctness]

    def judged(self, batch: RolloutBatch) -> Tensor:
        """The correctness reward's scores (rows,) before any scale: 1 or more is right, NaN is unknown."""
        scores, judge = self.given(batch), batch.judges.get(self.correctness)
        return scores if judge is None else judge.unscaled(scores, batch)

    def correct(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """True for right completions; False where the correctness reward does not apply."""
        return self.judged(batch) >= 1

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        """Mean number of tokens of the right and of the wrong completions."""
        judged, lengths = self.judged(batch), batch.lengths.float()
        return means({"length/correct": lengths[judged >= 1], "length/wrong": lengths[judged < 1]})
