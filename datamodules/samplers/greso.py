"""Prompts drawn in passes over the data, some of them skipped by chance (GRESO, arXiv 2506.02177)."""

from collections.abc import Callable, Iterator, Sequence

import torch

from datamodules.samplers.prompt_sampler import PromptSampler
from support.errors import ConfigError
from support.seeding import derive_seed


class GRESOSampler(PromptSampler):
    """Passes over the rows in a new order each, and leaves rows out by chance; the next rollout goes on where the last one stopped.

    All processes walk the same order with the same random numbers and keep their own share. No row comes twice in a rollout. When all rows of a
    small data set were passed over, a rollout is filled with the first of them.

    Args:
        ids: of the rows' prompts. skip: id -> probability of passing it over, the same on all processes.
        batch_size, seed, rank, processes: as in `PromptSampler`.
    """

    def __init__(
        self,
        ids: Sequence[str],
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        *,
        skip: Callable[[str], float],
    ) -> None:
        super().__init__(len(ids), batch_size, seed, rank, processes)
        self.ids, self.skip = ids, skip
        self.passes = self.place = (
            0  # passes over the rows that are complete, and rows of this one that were considered
        )
        self.considered = self.skipped = 0  # for the latest rollout, its further prompts included
        self._order: tuple[int, list[int]] = (-1, [])

    def _next(self) -> int:
        if self.place == self.size:
            self.passes, self.place = self.passes + 1, 0
        if self._order[0] != self.passes:
            generator = torch.Generator().manual_seed(derive_seed("prompt order", self.seed, self.passes))
            self._order = (self.passes, torch.randperm(self.size, generator=generator).tolist())
        self.place += 1
        return self._order[1][self.place - 1]

    def draw(self, rollout: int) -> list[int]:
        """The rows of one rollout, over all processes."""
        generator = torch.Generator().manual_seed(derive_seed("greso", self.seed, rollout))
        chosen: list[int] = []
        skipped: list[int] = []
        seen: set[int] = set()
        while len(chosen) < self.batch_size and len(seen) < self.size:
            index = self._next()
            if index not in seen:
                seen.add(index)
                passed_over = float(torch.rand((), generator=generator)) < self.skip(self.ids[index])
                (skipped if passed_over else chosen).append(index)
        self.considered, self.skipped = len(seen), len(skipped)
        return (chosen + skipped)[: self.batch_size]

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.processes
        while self.position < len(self):
            chosen = self.draw(self.epoch * len(self) + self.position)
            self.position += 1
            yield chosen[self.rank * share : (self.rank + 1) * share]
        self.position, self.epoch = 0, self.epoch + 1

    def spare(self, *key: int | str) -> Iterator[int]:
        """Further rows, through the same filter."""
        generator = torch.Generator().manual_seed(derive_seed("greso spare", self.seed, self.rank, *key))
        for index in super().spare(*key):
            passed_over = float(torch.rand((), generator=generator)) < self.skip(self.ids[index])
            self.considered, self.skipped = self.considered + 1, self.skipped + passed_over
            if not passed_over:
                yield index

    def state_dict(self) -> dict[str, int]:
        return super().state_dict() | {"passes": self.passes, "place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ConfigError when the checkpoint was made without GRESO."""
        if "place" not in state:
            raise ConfigError(
                "the checkpoint was made without GRESO; resume without callbacks.GRESO, or start a new run."
            )
        super().load_state_dict(state)
        self.passes, self.place = state["passes"], state["place"]
