"""Difficulty follows the measured pass rate, up and down."""

from collections import deque
from typing import Any

import lightning as L

from callbacks.difficulty import DifficultyLedger
from datamodules import CurriculumSampler
from support.errors import ConfigError
from support.papers import Paper


class Curriculum(L.Callback):
    """Moves the training prompts one level up when the current level is solved often enough, one down when it is solved too seldom.

    Needs data rows with a whole-numbered `level`, and a `DifficultyLedger` earlier in the list of callbacks. The level itself is the sampler's
    state, what was measured since it was entered is this callback's; a checkpoint carries both. Logs `train/curriculum_level`.

    Args:
        raise_at: pass rate of the current level from which it goes up. lower_at: the one down to which it goes down.
        window: rollouts at the current level that are measured before each move; the rate is that of all their groups of this level.
        rehearsal: share of prompts from lower levels. start: first level, the lowest if None. Both go to `CurriculumSampler`.
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
                f"Curriculum: needs lower_at < raise_at and window >= 1, got lower_at={lower_at}, raise_at={raise_at}, window={window}."
            )
        self.raise_at, self.lower_at, self.rehearsal, self.start = raise_at, lower_at, rehearsal, start
        self.recent: deque[tuple[float, int]] = deque(
            maxlen=window
        )  # (sum of rates, groups) of the newest rollouts at this level

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent.clear()
        self.recent.extend(state_dict["recent"])

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is not None and hasattr(data, "sampler"):
            data.sampler = self._sampler

    def _sampler(
        self, rows: list[dict[str, Any]], batch_size: int, seed: int, rank: int, processes: int
    ) -> CurriculumSampler:
        levels = [row.get("level") for row in rows]
        return CurriculumSampler(levels, batch_size, seed, rank, processes, rehearsal=self.rehearsal, start=self.start)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        before = trainer.callbacks[: trainer.callbacks.index(self)]
        ledgers = [callback for callback in before if isinstance(callback, DifficultyLedger)]
        if not ledgers:
            raise ConfigError(
                "Curriculum reads measured pass rates; put callbacks.DifficultyLedger before it in trainer.callbacks."
            )
        self.ledger = ledgers[0]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        sampler = getattr(trainer.train_dataloader, "prompt_sampler", None)
        if not isinstance(sampler, CurriculumSampler):
            raise ConfigError(
                f"Curriculum moves the level of a CurriculumSampler, but the training prompts come from {type(sampler).__name__}; use a data module of "
                "this project, or a PromptLoader with a CurriculumSampler."
            )
        self.sampler = sampler

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        level = self.sampler.level
        pl_module.log("train/curriculum_level", float(level), batch_size=1)  # equal on all processes already
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
