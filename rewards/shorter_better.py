"""ShorterBetter (arXiv 2504.21370): pulls a group's completions to the length of the shortest right one.

Source: Yi, Wang and Li. r_i = alpha c_i - beta |L_i - SOL|. SOL is the minimum of L_j over the right completions of the
group, or the mean of all L_j if none is right.

    python main.py fit --config configs/shorter_better.yaml

alpha is the weight of the correctness reward; this module contains the second term.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.judged import JudgedReward
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import means


class ShorterBetter(JudgedReward):
    """-beta |L - SOL|, for right and wrong completions alike, without a lower bound.

    Args:
        beta: price per token of distance from the group's optimal length (0.001 in the authors' code, with completions
            of up to 6000 tokens). For other lengths choose it so that beta times the longest completion is about the
            correctness reward's weight.
        correctness, weight, name: as in every JudgedReward; the authors' alpha is the correctness reward's weight, 2.
    """

    def __init__(
        self, beta: float = 0.001, correctness: str = "exact_answer", weight: float = 1.0, name: str | None = None
    ) -> None:
        super().__init__(correctness, weight, name)
        if beta < 0:
            raise ConfigError(f"ShorterBetter: beta is {beta}, but it is a price per token; set it to 0 or above.")
        self.beta = beta

    def optimal_lengths(self, batch: RolloutBatch) -> Float[Tensor, "prompts"]:
        """The sample optimal length (SOL) of every group, in tokens."""
        lengths = batch.lengths.float().view(-1, batch.group_size)
        correct = self.correct(batch).to(lengths.device).view_as(lengths)
        shortest = lengths.masked_fill(~correct, math.inf).amin(1)
        return torch.where(correct.any(1), shortest, lengths.mean(1))

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        return -self.beta * (batch.lengths - self.optimal_lengths(batch)[batch.groups]).abs()

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        optimal, none_right = self.optimal_lengths(batch), ~self.correct(batch).view(-1, batch.group_size).any(1)
        distance = (batch.lengths - optimal[batch.groups]).abs()
        return super().metrics(batch) | means({"sol": optimal, "sol_distance": distance, "sol_none_right": none_right})


PAPER = Paper(
    name="shorter_better",
    title="ShorterBetter",
    arxiv="2504.21370",
    idea="a reward that pulls towards the shortest right completion of the group",
    classes=("rewards.ShorterBetter",),
    configs=("shorter_better",),
    effect="45 % shorter at no loss (0.93 against GRPO's 0.90), once rewards are not divided by their deviation",
    experiment=Experiment(
        rollouts=40,
        arms={
            "shorter_better": {},
            "shorter_better, not divided": {
                "model.advantage": {"class_path": "objectives.GroupNorm", "init_args": {"scale": "none"}}
            },
            "alpha 0": {
                "model.rewards": [
                    {"class_path": "rewards.ExactAnswer", "init_args": {"weight": 0}},
                    {"class_path": "rewards.ShorterBetter", "init_args": {"beta": 0.02}},
                ]
            },
            "grpo": {"model.rewards": [{"class_path": "rewards.ExactAnswer"}]},
        },
        columns={"val pass@1": "val/pass1", "val length": "val/length", "optimal length": "train/sol"},
        expect="Length falls by at least 40 % at GRPO's accuracy; without alpha nothing protects accuracy.",
        claims=(
            Claim(text="completions become shorter", column="val length", sign=-1),
            Claim(text="at no loss of accuracy", column="val pass@1", sign=0, margin=0.02),
            Claim(
                text="without alpha nothing protects accuracy",
                column="val pass@1",
                sign=-1,
                arm="alpha 0",
                against="shorter_better",
            ),
        ),
    ),
)
