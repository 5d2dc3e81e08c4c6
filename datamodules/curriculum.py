"""Prompts of one level of difficulty and some of the easier ones; somebody else (`callbacks.Curriculum`) moves the level."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from datamodules.sampler import PromptSampler
from support.errors import ConfigError
from support.seeding import derive_seed


class CurriculumSampler(PromptSampler):
    """Draws a rollout's prompts from the current level, and a share of them from all levels below it.

    The draw is a function of (seed, rollout, level): within a rollout no row occurs twice, over rollouts each is drawn afresh, so an epoch
    is a number of rollouts and no pass over the rows. Of several processes each keeps its own share, as in `PromptSampler`.

    Args:
        levels: of every row, whole numbers; the higher, the harder.
        batch_size, seed, rank, processes: as in `PromptSampler`.
        rehearsal: share of prompts from the levels below, so that these are not forgotten; none at the lowest level.
        start: the first level; the lowest if None.

    Raises:
        ConfigError: for rows without a whole-numbered level, fewer than two levels, a level with fewer rows than a batch, an unknown start, or a
            rehearsal outside [0, 1).
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
                    f"a curriculum needs data rows with a whole-numbered `level`, but row {index} has {level!r}; use data that have levels "
                    "(ArithmeticPrompts, ReasoningGymPrompts with curriculum_levels) or name the column in data.columns, and for a "
                    "CSV file in data.numbers too."
                )
            pools[level].append(index)
        self.pools = {level: torch.tensor(pools[level]) for level in sorted(pools)}
        if len(pools) < 2:
            raise ConfigError(f"a curriculum needs at least two levels, the training rows have {sorted(pools)} only.")
        small = {level: len(rows) for level, rows in self.pools.items() if len(rows) < batch_size}
        if small:
            raise ConfigError(
                f"a curriculum draws up to {batch_size} prompts a rollout from one level, but these have fewer rows: {small} (level: rows); "
                "add rows, leave the level out, or lower batch.prompts_per_rollout."
            )
        if not 0 <= rehearsal < 1:
            raise ConfigError(f"a curriculum's rehearsal is {rehearsal}; it must be in [0, 1).")
        self.rehearsal = rehearsal
        self.level = self._known(min(pools) if start is None else start)

    def _known(self, level: int) -> int:
        if level not in self.pools:
            raise ConfigError(f"a curriculum is to stand at level {level}, but the training rows have {sorted(self.pools)}.")
        return level

    def move(self, steps: int) -> bool:
        """Go up (1) or down (-1) from the next rollout on; False if there is no such level."""
        order = list(self.pools)
        place = order.index(self.level) + steps
        if not 0 <= place < len(order):
            return False
        self.level = order[place]
        return True

    def draw(self, rollout: int) -> list[int]:
        """The rows of one rollout at the current level, over all processes."""
        generator = torch.Generator().manual_seed(derive_seed("curriculum", self.seed, rollout, self.level))
        below = [rows for level, rows in self.pools.items() if level < self.level]
        easier = round(self.rehearsal * self.batch_size) if below else 0
        parts = [(self.pools[self.level], self.batch_size - easier)] + ([(torch.cat(below), easier)] if easier else [])
        chosen = torch.cat([rows[torch.randperm(len(rows), generator=generator)[:count]] for rows, count in parts])
        # Mixed, so that no process gets all of the easier ones.
        return chosen[torch.randperm(len(chosen), generator=generator)].tolist()

    def spare(self, *key: int | str) -> Iterator[int]:
        """Further rows of the current level, then of those below it."""
        order = list(super().spare(*key))
        for level in sorted((level for level in self.pools if level <= self.level), reverse=True):
            pool = set(self.pools[level].tolist())
            yield from (index for index in order if index in pool)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.processes
        while self.position < len(self):
            chosen = self.draw(self.epoch * len(self) + self.position)
            self.position += 1
            yield chosen[self.rank * share : (self.rank + 1) * share]
        self.position, self.epoch = 0, self.epoch + 1

    def state_dict(self) -> dict[str, int]:
        return super().state_dict() | {"level": self.level}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ConfigError when the checkpoint was made without a curriculum, or its level is not among the rows'."""
        if "level" not in state:
            raise ConfigError("the checkpoint was made without a curriculum; resume without callbacks.Curriculum, or start a new run.")
        super().load_state_dict(state)
        self.level = self._known(state["level"])
