"""Answer uncertainty (arXiv 2503.01688): does the entropy of an answer, or a judge, predict that it is wrong?

    H = -sum_v p_v log p_v at the position that emits the answer's label, over the full vocabulary and over the labels

ROC-AUC and PR-AUC of H and of every judge's rating against "wrong", and the calibration error of the probability of
the chosen label, of all questions, by topic and by number of reasoning steps, with bootstrap intervals.

    python main.py test --config configs/uncertainty.yaml
"""

from typing import Any

from lightning_modules.core.answers import AnswerMeter
from lightning_modules.core.choice_module import ChoiceModule
from policies import PolicyParams
from rewards import Reward
from support.papers import Paper


class Uncertainty(ChoiceModule):
    """Measures how well entropy and judges predict wrong answers.

    `figures` holds the result. `callbacks.AnswerUncertainty` measures the same in the test of any other module.

    Args:
        policy: the model, or for a checkpoint the policy of its run.
        judges: rewards that rate how difficult a question is, high for difficult: `rewards.DifficultyJudge` asks a
            model (MASJ), `rewards.HTTPJudge` any endpoint; functions work as everywhere.
        groups: columns by which figures are grouped; topic and steps if None.
        smallest_group: smallest number of questions of a group that is reported.
        kwargs: as in every module; a test uses none of them.
    """

    def __init__(
        self,
        policy: PolicyParams,
        *,
        judges: list[Reward] | None = None,
        groups: list[str] | None = None,
        smallest_group: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, **kwargs)
        self.meter = AnswerMeter(judges or [], groups, smallest_group)
        self.figures: dict[str, dict[str, Any]] = {}

    def check_row(self, row: dict[str, Any]) -> None:
        super().check_row(row)
        for judge in self.meter.judges:
            judge.check_columns(row)

    def on_test_epoch_start(self) -> None:
        self.gather_weights()
        self.meter.reset()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.meter.add(self.policy, self.choice_rows(batch))

    def on_test_epoch_end(self) -> None:
        self.scatter_weights()
        self.figures = self.meter.figures()
        self.log_figures(self.figures["all"])

    def report(self) -> dict[str, Any]:
        """The figures, and every answer, as plain data."""
        return self.meter.report(self.figures)


PAPER = Paper(
    name="uncertainty",
    title="Answer uncertainty",
    arxiv="2503.01688",
    idea="entropy at the answer's token, or a judge's rating of difficulty, predicts wrong answers",
    classes=("lightning_modules.Uncertainty", "callbacks.AnswerUncertainty", "rewards.DifficultyJudge"),
    configs=("uncertainty",),
    not_compared="it measures a policy and trains none",
)
