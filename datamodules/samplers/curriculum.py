"""Prompts of one level of difficulty and some easier ones; a callback (`callbacks.Curriculum`) changes the level."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from datamodules.samplers.prompt_sampler import PromptSampler
from support.errors import ConfigError
from support.seeding import derive_seed


class CurriculumSampler(PromptSampler):
    """Draw a rollout's prompts from the current level, and a fraction of them from all levels below it.

    The draw is a function of (seed, rollout, level). No row occurs twice within a rollout, and every rollout is drawn
    independently, so an epoch is a number of rollouts and not a pass over the rows. Every process keeps its own part of
    the batch, as in `PromptSampler`.

    Args:
        levels: level of every row, an integer; higher levels are harder.
        batch_size, seed, rank, processes: as in `PromptSampler`.
        rehearsal: fraction of prompts from the levels below, so that the policy does not forget them; none at the
            lowest level.
        start: the first level; the lowest if None.

    Raises:
        ConfigError: for rows without an integer level, fewer than two levels, a level with fewer rows than a batch, an
            unknown start, or a rehearsal outside [0, 1).
    """

    def __init__(
        self,
        levels: Sequence[Any],
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        rehearsal: float = 0.25,
        start: int | None = None,
    ) -> None:
        super().__init__(len(levels), batch_size, seed, rank, processes)
        pools: dict[int, list[int]] = defaultdict(list)
        for index, level in enumerate(levels):
            if not isinstance(level, int) or isinstance(level, bool):
                raise ConfigError(
                    f"a curriculum needs data rows with an integer `level`, but row {index} has {level!r}. Use data "
                    "with levels (ArithmeticPrompts, ReasoningGymPrompts with curriculum_levels) or name the column in "
                    "data.columns, and for a CSV file in data.numbers too."
                )
            pools[level].append(index)
        self.pools = {level: torch.tensor(pools[level]) for level in sorted(pools)}
        if len(pools) < 2:
            raise ConfigError(
                f"a curriculum needs at least two levels, but the training rows have only {sorted(pools)}; add rows of "
                "another level, or remove the curriculum callback from trainer.callbacks."
            )
        small = {level: len(rows) for level, rows in self.pools.items() if len(rows) < batch_size}
        if small:
            raise ConfigError(
                f"a curriculum draws up to {batch_size} prompts per rollout from one level, but these levels have "
                f"fewer rows: {small} (level: rows). Add rows, leave the level out, or lower batch.prompts_per_rollout."
            )
        if not 0 <= rehearsal < 1:
            raise ConfigError(
                f"a curriculum's rehearsal is {rehearsal}; it is a fraction of the prompts and must be at least 0 and "
                "below 1."
            )
        self.rehearsal = rehearsal
        self.level = self._known(min(pools) if start is None else start)

    def _known(self, level: int) -> int:
        if level not in self.pools:
            raise ConfigError(
                f"a curriculum is set to start or resume at level {level}, but the training rows have the levels "
                f"{sorted(self.pools)}; set `start` to one of these, or resume with the data of the checkpoint."
            )
        return level

    def move(self, steps: int) -> bool:
        """Move up (1) or down (-1) from the next rollout on. Returns False if there is no such level."""
        levels = list(self.pools)
        target = levels.index(self.level) + steps
        if not 0 <= target < len(levels):
            return False
        self.level = levels[target]
        return True

    def draw(self, rollout: int) -> list[int]:
        """The rows of one rollout at the current level, over all processes."""
        generator = torch.Generator().manual_seed(derive_seed("curriculum", self.seed, rollout, self.level))
        below = [rows for level, rows in self.pools.items() if level < self.level]
        easier = round(self.rehearsal * self.batch_size) if below else 0
        parts = [(self.pools[self.level], self.batch_size - easier)] + ([(torch.cat(below), easier)] if easier else [])
        chosen = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:count]] for rows, count in parts])
        # Shuffled, so that no process gets all the easier prompts.
        return chosen[torch.randperm(len(chosen), generator=generator)].tolist()

    def spare(self, *key: int | str) -> Iterator[int]:
        """Further rows of the current level, then of those below it."""
        order = list(super().spare(*key))
        for level in sorted((level for level in self.pools if level <= self.level), reverse=True):
            pool = set(self.pools[level].tolist())
            yield from (index for index in order if index in pool)

    def state_dict(self) -> dict[str, int]:
        return super().state_dict() | {"level": self.level}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore position and level. Raises ConfigError if the checkpoint has no level, or one that the rows lack."""
        if "level" not in state:
            raise ConfigError(
                "the checkpoint was made without a curriculum; resume without callbacks.Curriculum, or start a new run "
                "without --ckpt_path."
            )
        super().load_state_dict(state)
        self.level = self._known(state["level"])
