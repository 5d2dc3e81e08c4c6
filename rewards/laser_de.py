"""LASER-DE (Liu et al., arXiv 2505.15612): LASER-D that also lets wrong answers explore longer completions.

python main.py fit --config configs/laser.yaml --config configs/laser/de.yaml
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from rewards.laser import LaserD
from rewards.repetition import looping_rows
from rollouts import RolloutBatch
from support.papers import Paper
from support.processes import means


class LaserDE(LaserD):
    """LASER-DE: as LASER-D, but wrong completions in the format that are longer than their target earn the bonus too.

    Completions that repeat themselves are excluded.

    Args:
        wrong: the correctness reward's score of a wrong completion in the format.
        ngram, times: definition of a repetition (`rewards.repetition.loops`); ngram None gives the bonus to repetitions
            too, as the paper's formula does.
        alpha, correctness, weight, name: as in Laser.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        wrong: float = -0.5,
        ngram: int | None = 4,
        times: int = 3,
        correctness: str = "graded_answer",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(alpha, correctness, weight, name)
        self.wrong, self.ngram, self.times = wrong, ngram, times

    def explores(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """True for wrong completions in the format that are longer than their target."""
        scores, judge = self.given(batch), batch.judges.get(self.correctness)
        plain = scores if judge is None else judge.without_scale(scores, batch)
        is_wrong = torch.isclose(plain, torch.full_like(plain, self.wrong)) & ~self.correct(batch)
        return is_wrong & (batch.lengths > self.targets_of(batch))

    def repeats(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """True for completions that would explore but repeat themselves."""
        explores = self.explores(batch) & (self.ngram is not None)
        return looping_rows(batch, explores, self.ngram or 1, self.times, self.name)

    def earns(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        return super().earns(batch) | (self.explores(batch) & ~self.repeats(batch))

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        return super().metrics(batch) | means({"laser_repeats": self.repeats(batch)[self.explores(batch)]})


LASER_D = Paper(
    name="laser_d",
    title="LASER-D",
    arxiv="2505.15612",
    idea="LASER with a measured target for each difficulty; LASER-DE also lets wrong answers explore",
    classes=("rewards.LaserD", "rewards.LaserDE", "callbacks.LaserMonitor"),
    configs=("laser", "laser_d"),
    page="laser",
    effect="40 → 21.6 tokens, pass@1 0.77 → 0.91",
    comparison={
        "trainer.callbacks": [
            {
                "class_path": "callbacks.LaserMonitor",
                "init_args": {
                    "every_n_rollouts": 12,
                    "size": 16,
                    "samples": 8,
                    "shortest": 4,
                    "longest": 72,
                    "interval": 4,
                },
            }
        ]
    },
)
