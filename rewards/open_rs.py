"""The rewards of open-rs (Dang and Ngo, arXiv 2503.16219): low-cost GRPO of a 1.5B model.

A cosine of the length scales the reward of an answer. Experiments 1 and 2 use accuracy + format; experiment 3 uses
format + 2 x cosine, which includes the accuracy.

    python main.py fit --config configs/open_rs.yaml
"""

import math
from typing import Literal

from rewards.answers import MathAnswer
from rewards.base import Reward
from rewards.judged import JudgedReward
from rewards.math_text import is_text
from rewards.quantities import quantity
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import means


class CosineLength(JudgedReward):
    """far + (near - far) (1 + cos(pi q)) / 2 with q = length / max_length, with separate ends for right and wrong.

    `near` is the reward of the shortest completion, `far` that of the longest. If the correctness reward does not
    apply, all completions of the group earn 1, so that the group has no gradient.

    Args:
        max_length: 3584 in experiment 3, usually `max_new_tokens`.
        correct: (near, far) for right completions.
        wrong: (near, far) for wrong completions; the defaults are those of the authors' script, see docs/open_rs.md.
        count: unit of the length; the authors' code counts characters.
        clamp: limit q to 1. The authors' code does not, so that the cosine rises again beyond max_length.
        correctness, weight, name: as in every JudgedReward.
    """

    def __init__(
        self,
        max_length: int = 3584,
        correct: tuple[float, float] = (1.0, 0.5),
        wrong: tuple[float, float] = (0.0, -0.5),
        count: Literal["tokens", "characters"] = "tokens",
        clamp: bool = True,
        correctness: str = "exact_answer",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(correctness, weight, name)
        if max_length < 1:
            raise ConfigError(
                f"CosineLength: max_length is {max_length}; set it to 1 or above, usually to sampling.max_new_tokens."
            )
        self.max_length, self.ends = max_length, {True: correct, False: wrong}
        self.characters, self.clamp = count == "characters", clamp

    def score(self, batch: RolloutBatch) -> list[float]:
        lengths = [len(text) for text in batch.completions] if self.characters else batch.lengths.tolist()
        rows = zip(lengths, self.judged(batch).tolist(), strict=True)
        return [1.0 if math.isnan(right) else self.worth(length, right >= 1) for length, right in rows]

    def worth(self, length: float, right: bool) -> float:
        """The reward of a completion of this length."""
        q = length / self.max_length
        near, far = self.ends[right]
        return far + 0.5 * (near - far) * (1 + math.cos(math.pi * (min(1.0, q) if self.clamp else q)))

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        right, scores = self.correct(batch), batch.rewards[self.name]
        return super().metrics(batch) | means({"cosine/correct": scores[right], "cosine/wrong": scores[~right]})


class ParsableMathAnswer(MathAnswer):
    """As MathAnswer, but does not apply to rows whose own answer is not mathematics, such as words.

    The authors' code gives all completions of such rows 1, which has no gradient either.
    """

    def _readable(self, golds: list[str]) -> dict[str, bool]:
        readable = super()._readable(golds)
        return {gold: known and (quantity(gold) is not None or not is_text(gold)) for gold, known in readable.items()}


class LineFormat(Reward):
    """1 if the completion has exactly one line </think>, else 0: the whole format if the prompt opens the block."""

    def score(self, batch: RolloutBatch) -> list[float]:
        return [float(text.count("\n</think>\n") == 1) for text in batch.completions]


class TagCount(Reward):
    """0.5 for <think> at the end of exactly one line, and 0.5 for exactly one line </think>."""

    def score(self, batch: RolloutBatch) -> list[float]:
        return [
            0.5 * (text.count("<think>\n") == 1) + 0.5 * (text.count("\n</think>\n") == 1) for text in batch.completions
        ]


PAPER = Paper(
    name="open_rs",
    title="open-rs",
    arxiv="2503.16219",
    idea="rewards that pay for a right answer by a cosine of its length",
    classes=("rewards.CosineLength",),
    configs=("open_rs",),
    effect="32 → 23 tokens at GRPO's pass@1 of 0.90, once rewards are not divided by the group's deviation",
    comparison={
        "model.rewards": [
            {"class_path": "rewards.ExactAnswer", "init_args": {"weight": 0.0}},
            {"class_path": "rewards.Format", "init_args": {"weight": 1.0}},
            {"class_path": "rewards.CosineLength", "init_args": {"max_length": 72, "weight": 2.0}},
        ]
    },
    experiment=Experiment(
        rollouts=40,
        arms={
            "open_rs": {},
            "open_rs, not divided": {
                "model.advantage": {"class_path": "objectives.GroupNorm", "init_args": {"scale": "none"}}
            },
            "grpo": {"model.rewards": [{"class_path": "rewards.ExactAnswer"}, {"class_path": "rewards.Format"}]},
        },
        columns={"val pass@1": "val/pass1", "val length": "val/length", "right length": "train/length/correct"},
        expect="Right completions become shorter than with accuracy and format alone, at similar accuracy.",
        claims=(
            Claim(text="completions become shorter", column="val length", sign=-1),
            Claim(text="at no loss of accuracy", column="val pass@1", sign=0, margin=0.02),
        ),
    ),
)
