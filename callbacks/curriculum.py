"""Curriculum: the difficulty of the training prompts follows the measured pass rate, up and down."""

from collections import deque
from typing import Any

import lightning as L

from callbacks.difficulty import ledger_before
from callbacks.prompt_choice import install_sampler, installed_sampler
from datamodules import CurriculumSampler
from support.errors import ConfigError
from support.papers import Paper


class Curriculum(L.Callback):
    """Move the training prompts one level up when the current level is solved often enough, one down when too seldom.

    Needs data rows with an integer `level`, and a `DifficultyLedger` earlier in the list of callbacks. The level is
    part of the sampler's state; the measurements since that level was entered are part of this callback's state. A
    checkpoint holds both. Logs `train/curriculum_level`.

    Args:
        raise_at: pass rate of the current level at or above which the level goes up.
        lower_at: pass rate at or below which it goes down.
        window: rollouts at the current level that are measured before each move; the rate is that of all their groups
            of this level.
        rehearsal: fraction of prompts from lower levels, passed to `CurriculumSampler`.
        start: first level, the lowest if None; passed to `CurriculumSampler`.
    """

    def __init__(
        self,
        raise_at: float = 0.8,
        lower_at: float = 0.3,
        window: int = 3,
        rehearsal: float = 0.25,
        start: int | None = None,
    ) -> None:
        if not lower_at < raise_at or window < 1:
            raise ConfigError(
                f"Curriculum: lower_at is {lower_at}, raise_at {raise_at} and window {window}, but it needs "
                "lower_at < raise_at and window >= 1. Change these arguments of callbacks.Curriculum."
            )
        self.raise_at, self.lower_at, self.rehearsal, self.start = raise_at, lower_at, rehearsal, start
        # (sum of rates, number of groups) of the latest rollouts at this level
        self.recent: deque[tuple[float, int]] = deque(maxlen=window)

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent.clear()
        self.recent.extend(state_dict["recent"])

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        install_sampler(trainer, stage, self._sampler)

    def _sampler(
        self, rows: list[dict[str, Any]], batch_size: int, seed: int, rank: int, processes: int
    ) -> CurriculumSampler:
        levels = [row.get("level") for row in rows]
        return CurriculumSampler(levels, batch_size, seed, rank, processes, rehearsal=self.rehearsal, start=self.start)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.ledger = ledger_before(trainer, self)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.sampler = installed_sampler(trainer, self, CurriculumSampler)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        level = self.sampler.level
        pl_module.log("train/curriculum_level", float(level), batch_size=1)  # already equal on all processes
        rates = [measurement.rate for measurement in self.ledger.last if measurement.level == level]
        if rates:
            self.recent.append((sum(rates), len(rates)))
        if len(self.recent) < (self.recent.maxlen or 0):
            return
        rate = sum(total for total, _ in self.recent) / sum(count for _, count in self.recent)
        step = 1 if rate >= self.raise_at else -1 if rate <= self.lower_at else 0
        if step and self.sampler.move(step):
            self.recent.clear()
            if trainer.is_global_zero:
                print(f"Curriculum: level {level} -> {self.sampler.level} at pass rate {rate:.2f}", flush=True)


PAPER = Paper(
    name="curriculum",
    title="GRPO, curriculum",
    idea="difficulty that follows the measured pass rate, on any on-policy method",
    classes=("callbacks.Curriculum",),
    configs=("grpo", "curriculum"),
)
