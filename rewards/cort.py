"""CoRT's reward of code: R = R_a + 0.1 R_c, with R_c = -1 if all code blocks of a completion failed (arXiv 2506.09820).

CoRT lets a reasoning model run Python within its thinking: `environments.CodeFence` and `environments.PythonTool`. R_a
is any reward that judges answers. The outputs carry no loss.

    python main.py fit --config configs/cort.yaml
"""

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.base import Reward
from rewards.turn_rewards import turns_of
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import means


class CodeFailures(Reward):
    """-1 for a completion whose calls all failed, else 0; `environments.tools.is_failure` says what a failure is.

    The paper punishes code that fails. In the authors' code "all of no blocks failed" is true, so a completion without
    any code is punished too; `without_code: -1` does the same. The default is the paper's: no code is no failure.

    Args:
        without_code: score of completions without a call: 0 or -1.
        weight: omega; 0.1 in the authors' code.
        name: as in every reward.
    """

    reads_turns, span = True, (-1.0, 0.0, True)

    def __init__(self, without_code: int = 0, weight: float = 0.1, name: str | None = None) -> None:
        super().__init__(weight, name)
        if without_code not in (0, -1):
            raise ConfigError(f"CodeFailures: without_code is {without_code}; set it to 0 or -1.")
        self.without_code = without_code

    def counts(self, batch: RolloutBatch) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
        """(calls, calls that failed) of each completion."""
        values = turns_of(self, batch).values
        if not {"calls", "failed_outputs"} <= values.keys():
            raise ConfigError(
                f"the reward {self.name!r} (CodeFailures) reads how many calls failed, which environments."
                "ToolEnvironment counts; use it as model.environment, or remove the reward."
            )
        return values["calls"], values["failed_outputs"]

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        calls, failed = self.counts(batch)
        score = torch.where(failed >= calls, -1.0, 0.0)
        return torch.where(calls == 0, float(self.without_code), score)

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        calls, failed = self.counts(batch)
        rate = torch.where(calls > 0, 1 - failed / calls, torch.nan)
        return super().metrics(batch) | means({"call_rate": (calls > 0).float(), "call_success": rate})


PAPER = Paper(
    name="cort",
    title="CoRT",
    arxiv="2506.09820",
    idea="Python within the reasoning: outputs carry no loss, failing code costs 0.1, cues teach to use it well",
    classes=("environments.CodeFence", "environments.PythonTool", "rewards.CodeFailures"),
    configs=("cort",),
    effect="",
    not_compared="its start must know how to write code blocks, and the comparison's prompts have no environment",
    experiment=Experiment(
        rollouts=30,
        arms={
            "cort": {},
            "unmasked": {"model": "benchmarks.unmasked.Unmasked"},
            "grpo": {"model.environment": None, "model.rewards": [{"class_path": "rewards.ExactAnswer"}]},
        },
        columns={
            "val pass@1": "val/pass1",
            "calls": "val/calls",
            "val length": "val/length",
            "call rate in training": "train/call_rate",
        },
        expect="Call rate and accuracy rise together, on sums that work by hand mostly gets wrong; without the mask "
        "training is less stable.",
        validate_every=10,
        claims=(
            Claim(text="programs are called more often", column="calls", sign=1, against="start"),
            Claim(text="and accuracy rises", column="val pass@1", sign=1, against="start"),
            Claim(
                text="outputs without a mask make it worse",
                column="val pass@1",
                sign=-1,
                arm="unmasked",
                against="cort",
            ),
        ),
    ),
)
