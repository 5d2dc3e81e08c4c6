"""Answer uncertainty (arXiv 2503.01688) in the test of any module."""

from typing import Any

import lightning as L

from callbacks.reports import write_report
from datamodules import ChoiceQuestions
from lightning_modules.core.answers import AnswerMeter
from lightning_modules.core.choice_module import check_choices, flat
from policies import Policy
from rewards import Reward
from support.errors import ConfigError


class AnswerUncertainty(L.Callback):
    """In `test`, measure how well answer entropy predicts wrong answers, beside pass@k and the module's other metrics.

    It logs test/uncertainty/..., prints the table and writes uncertainty.json and .png. Works with every module whose
    policy is a language model.

    Args:
        questions: multiple-choice questions; the test's own rows if None, which `ChoiceQuestions` makes.
        judges, groups, smallest_group: as of `lightning_modules.Uncertainty`.
    """

    def __init__(
        self,
        questions: ChoiceQuestions | None = None,
        judges: list[Reward] | None = None,
        groups: list[str] | None = None,
        smallest_group: int = 10,
    ) -> None:
        self.questions, self.meter = questions, AnswerMeter(judges or [], groups, smallest_group)
        self.figures: dict[str, dict[str, Any]] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.meter.reset()
        if not isinstance(policy := getattr(pl_module, "policy", None), Policy):
            raise ConfigError(
                f"AnswerUncertainty asks a language model, and {type(pl_module).__name__} has a "
                f"{type(policy).__name__}; take the callback out of trainer.callbacks."
            )
        data = getattr(trainer, "datamodule", None)
        source: Any = self.questions or data
        for row in source.rows("test") if hasattr(source, "rows") else []:
            self._check(row)

    def _check(self, row: dict[str, Any]) -> None:
        check_choices(row, "AnswerUncertainty without `questions`" if self.questions is None else "AnswerUncertainty")
        for judge in self.meter.judges:
            judge.check_columns(row)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.questions is None:
            for row in batch:
                self._check(row)
            self.meter.add(pl_module.policy, batch)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.questions is not None:
            rows = self.questions.rows("test")[trainer.global_rank :: trainer.world_size]
            for start in range(0, len(rows), self.questions.val_batch):
                self.meter.add(pl_module.policy, rows[start : start + self.questions.val_batch])
        self.figures = self.meter.figures()
        for name, value in flat(self.figures["all"]).items():
            pl_module.log(f"test/uncertainty/{name}", value, sync_dist=True)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            write_report(trainer, "uncertainty", self.meter.report(self.figures))
