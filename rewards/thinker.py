"""Thinker's rewards: one for each turn of its dialogue (arXiv 2505.21097).

Fast and slow turn: R = 1[the answer is right]. Verification: R = (1 - p) 1[Yes] if the fast answer is right, else
p 1[No], where p is the trailing accuracy of the fast turn; so a verifier that always says Yes earns p (1 - p) on
average, as one that always says No. Summary: R = 1[right] + k log pi(summary | prompt of the fast turn), the second
term only for right ones.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rewards.turn_rewards import TurnReward, turns_of
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.processes import means


class BalancedVerdict(TurnReward):
    """The reward of true verdicts on the answer of turn 0: 1 - p if that is right, p if it is wrong, else 0.

    p is the trailing accuracy of turn 0: an exponential moving average over rollouts, which begins with the first one's
    and is kept in checkpoints.

    Args:
        decay: of the average; p = decay p + (1 - decay) accuracy.
        smallest: p is kept between this and 1 - this, so that neither kind of verdict becomes worthless.
        turn, weight, name: as in `TurnReward`.
    """

    def __init__(
        self,
        decay: float = 0.9,
        smallest: float = 0.05,
        turn: int = 1,
        weight: float = 1.0,
        name: str | None = "verify",
    ) -> None:
        super().__init__(turn, weight, name)
        if not 0 <= decay < 1 or not 0 < smallest <= 0.5:
            raise ConfigError(
                f"BalancedVerdict: decay is {decay} and smallest {smallest}; set decay from 0 to below 1, and smallest "
                "above 0 and at most 0.5."
            )
        self.decay, self.smallest = decay, smallest
        #: trailing accuracy of the fast turn; None before the first rollout
        self.trailing: float | None = None

    @property
    def p(self) -> float:
        """The trailing accuracy within its bounds; one half before the first rollout."""
        return min(max(0.5 if self.trailing is None else self.trailing, self.smallest), 1 - self.smallest)

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        fast, is_true = turns_of(self, batch).rewards_of(0), super().score(batch)
        return torch.where(fast >= 1, 1 - self.p, self.p) * is_true

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        return super().metrics(batch) | {"trailing_accuracy": self.p}

    def observe(self, batch: RolloutBatch) -> None:
        accuracy = means({"fast": turns_of(self, batch).rewards_of(0)}).get("fast")
        if accuracy is not None:
            before = accuracy if self.trailing is None else self.trailing
            self.trailing = self.decay * before + (1 - self.decay) * accuracy

    def state_dict(self) -> dict[str, float]:
        return {} if self.trailing is None else {"trailing": self.trailing}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.trailing = state.get("trailing")


class LikelySummary(Reward):
    """log pi(summary | prompt of the fast turn) of right summaries, 0 of wrong ones; NaN without a summary.

    `lightning_modules.Thinker` computes it, which has the policy.

    Args:
        weight: k. name: as in every reward.
    """

    may_abstain, reads_turns, turn = True, True, 3

    def __init__(self, weight: float = 1e-3, name: str | None = "summary_likelihood") -> None:
        super().__init__(weight, name)

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        raise ConfigError(
            f"the reward {self.name!r} (LikelySummary) needs the policy, which only lightning_modules.Thinker hands "
            "it; use that method, or remove the reward."
        )


class FinalAnswer(Reward):
    """Whether the last answer of a dialogue is right: the summary's, else the slow turn's, else the fast turn's.

    It serves pass@1 and pass@k, and its weight is 0, because each turn has a reward of its own.

    Args:
        weight, name: as in every reward.
    """

    is_correctness, may_abstain, reads_turns, span = True, True, True, (0.0, 1.0, True)

    def __init__(self, weight: float = 0.0, name: str | None = "final") -> None:
        super().__init__(weight, name)

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        final, *later = (turns_of(self, batch).rewards_of(turn) for turn in (0, 2, 3))
        for grades in later:
            final = torch.where(grades.isnan(), final, grades)
        return final
