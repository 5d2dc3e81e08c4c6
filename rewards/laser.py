"""LASER and LASER-D (Liu et al., arXiv 2505.15612): a right answer within a target length earns a bonus.

R(y) = C(y) + lambda(y) alpha 1[L <= L_T]; `GradedAnswer` is C, `Laser` the bonus. LASER-D has a target each for easy,
medium and hard prompts, which `callbacks.LaserMonitor` measures repeatedly. LASER-DE is in `rewards/laser_de.py`.

    python main.py fit --config configs/laser.yaml
    python main.py fit --config configs/laser.yaml --config configs/laser_d.yaml
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewards.answers import ExactAnswer, Format
from rewards.base import Failure, Reward
from rewards.failures import inner_scores, lowest_rate
from rewards.judged import JudgedReward
from rewards.self_check import GoldProblem
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import means

BUCKETS = ("easy", "medium", "hard")


class GradedAnswer(Reward):
    """LASER's C: 1 for a right answer in the format, `wrong` for a wrong one, `malformed` without the format.

    pass@1 counts right answers in the format only.

    Args:
        answer: the reward that judges the answer, ExactAnswer if None; a score of 1 or more is right.
        form: the reward that judges the format, Format if None; a score of 1 or more is well-formed.
        wrong, malformed: -0.5 and -1 in the paper.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(
        self,
        answer: Reward | None = None,
        form: Reward | None = None,
        wrong: float = -0.5,
        malformed: float = -1.0,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        if not malformed <= wrong < 1:
            raise ConfigError(
                f"GradedAnswer: needs malformed <= wrong < 1, got malformed={malformed} and wrong={wrong}."
            )
        self.answer, self.form = answer or ExactAnswer(), form or Format()
        self.wrong, self.malformed = wrong, malformed
        inner = (self.answer, self.form)
        self.may_abstain = any(reward.may_abstain for reward in inner)
        self.waits = any(reward.waits for reward in inner)
        self.max_failure_rate = lowest_rate(inner)

    def score(self, batch: RolloutBatch) -> Sequence[float | Failure]:
        """The scores; NaN where one of the two rewards abstains, a Failure where one failed."""
        (answer, failures), (form, more) = inner_scores(self.answer, batch), inner_scores(self.form, batch)
        right, formed = self.answer.unscaled(answer, batch) >= 1, self.form.unscaled(form, batch) >= 1
        scores = torch.where(formed, torch.where(right, 1.0, self.wrong), self.malformed)
        known = scores.masked_fill(answer.isnan() | form.isnan(), torch.nan).tolist()
        failed = more | failures
        return [failed.get(row, score) for row, score in enumerate(known)]

    def unscaled(self, scores: Float[Tensor, "rows"], batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return torch.where(scores.isnan(), torch.nan, (scores >= 1).float())

    @property
    def parts(self) -> list[Reward]:
        return [self.answer, self.form]

    def extracted(self, batch: RolloutBatch) -> list[str]:
        return self.answer.extracted(batch)

    def self_check(self, rows: Sequence[dict[str, Any]]) -> list[GoldProblem]:
        return self.answer.self_check(rows)

    def check_columns(self, row: dict[str, Any]) -> None:
        self.answer.check_columns(row)
        self.form.check_columns(row)

    def observe(self, batch: RolloutBatch) -> None:
        self.answer.observe(batch)
        self.form.observe(batch)

    def state_dict(self) -> dict[str, Any]:
        parts = {"answer": self.answer.state_dict(), "form": self.form.state_dict()}
        return parts if any(parts.values()) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.answer.load_state_dict(state.get("answer", {}))
        self.form.load_state_dict(state.get("form", {}))


class StepBonus(JudgedReward):
    """alpha for right completions of at most their target length, which subclasses define."""

    def __init__(self, alpha: float, correctness: str, weight: float, name: str | None) -> None:
        super().__init__(correctness, weight, name)
        if alpha < 0:
            raise ConfigError(f"{type(self).__name__}: alpha is {alpha}, but it is a bonus; set it to 0 or above.")
        self.alpha = alpha

    @abstractmethod
    def targets_of(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        """The target length of every completion, in tokens."""

    def earns(self, batch: RolloutBatch) -> Bool[Tensor, "rows"]:
        """True for completions that get the bonus."""
        return self.correct(batch) & (batch.lengths <= self.targets_of(batch))

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return self.alpha * self.earns(batch)

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        return super().metrics(batch) | means(
            {"laser_target": self.targets_of(batch), "laser_bonus": self.earns(batch)}
        )


class Laser(StepBonus):
    """LASER: one target for all prompts.

    Args:
        target: L_T, in tokens (2048, 4096 or 8192 in the paper).
        alpha: the bonus, 0.5 in the paper.
        correctness, weight, name: as in every JudgedReward; correctness is usually a GradedAnswer.
    """

    def __init__(
        self,
        target: int,
        alpha: float = 0.5,
        correctness: str = "graded_answer",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(alpha, correctness, weight, name)
        if target < 1:
            raise ConfigError(f"Laser: target is {target}; set it to a number of tokens, 1 or above.")
        self.target = target

    def targets_of(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return torch.full_like(batch.lengths, self.target, dtype=torch.float32)


class LaserD(StepBonus):
    """LASER-D: a target for each difficulty, which is given by the fraction of right completions in the prompt's group.

    `targets` contains the latest targets of `callbacks.LaserMonitor`. A difficulty without a target uses the longest
    completion of the batch, so every right completion earns the bonus.

    Args:
        alpha, correctness, weight, name: as in Laser.
    """

    def __init__(
        self, alpha: float = 0.5, correctness: str = "graded_answer", weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(alpha, correctness, weight, name)
        self.targets: dict[str, int | None] = dict.fromkeys(BUCKETS)

    def buckets(self, batch: RolloutBatch) -> list[str]:
        """The difficulty of every prompt: easy from two thirds right, medium from one third, else hard."""
        size = batch.group_size
        right = self.correct(batch).view(-1, size).sum(1).tolist()
        return ["easy" if 3 * count >= 2 * size else "medium" if 3 * count >= size else "hard" for count in right]

    def targets_of(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        longest = int(batch.lengths.max())
        targets = [self.targets[bucket] or longest for bucket in self.buckets(batch)]
        return torch.tensor(targets, dtype=torch.float32, device=batch.lengths.device)[batch.groups]

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        buckets = self.buckets(batch)
        shares = means(
            {f"laser_share/{name}": torch.tensor([bucket == name for bucket in buckets]) for name in BUCKETS}
        )
        targets = {f"laser_target/{bucket}": float(target) for bucket, target in self.targets.items() if target}
        return super().metrics(batch) | shares | targets

    def state_dict(self) -> dict[str, Any]:
        return {"targets": dict(self.targets)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.targets = dict(state.get("targets") or dict.fromkeys(BUCKETS))


LASER = Paper(
    name="laser",
    title="LASER",
    arxiv="2505.15612",
    idea="a bonus for right answers within a target length",
    classes=("rewards.Laser", "rewards.GradedAnswer"),
    configs=("laser",),
    effect="40 → 21.5 tokens, pass@1 0.77 → 0.90",
    comparison={
        "model.rewards": [
            {"class_path": "rewards.GradedAnswer", "init_args": {}},
            {"class_path": "rewards.Laser", "init_args": {"target": 48}},
        ]
    },
    experiment=Experiment(
        rollouts=40,
        arms={
            "laser": {},
            "laser_d": {"config": ["laser", "laser_d"]},
            "laser_de": {"config": ["laser", "laser/de"]},
            "truncation": {"config": ["laser", "laser/truncation"]},
            "normalised": {"config": ["laser", "laser/normalised"]},
            "kimi": {"config": ["laser", "laser/kimi"]},
            "l1_exact": {"config": ["laser", "laser/l1_exact"]},
            "l1_max": {"config": ["laser", "laser/l1_max"]},
            "grpo": {"model.rewards": [{"class_path": "rewards.GradedAnswer"}]},
        },
        columns={
            "val pass@1": "val/pass1",
            "val length": "val/length",
            "right length": "train/length/correct",
            "target": "train/laser_target",
        },
        expect="The mean length of right completions falls below the target of 34 tokens, accuracy stays within 2 "
        "points of GRPO's.",
        claims=(
            Claim(text="LASER: completions become shorter", column="val length", sign=-1),
            Claim(text="at no loss of accuracy", column="val pass@1", sign=0, margin=0.02),
            Claim(text="LASER-D: completions become shorter", column="val length", sign=-1, arm="laser_d"),
            Claim(text="at no loss of accuracy", column="val pass@1", sign=0, arm="laser_d", margin=0.02),
            Claim(text="LASER-DE: completions become shorter", column="val length", sign=-1, arm="laser_de"),
            Claim(text="at no loss of accuracy", column="val pass@1", sign=0, arm="laser_de", margin=0.02),
            Claim(text="more accurate than truncation", column="val pass@1", sign=1, against="truncation"),
        ),
    ),
)
