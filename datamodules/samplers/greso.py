"""Prompts drawn in passes over the data, some of them skipped at random (GRESO, arXiv 2506.02177)."""

from collections.abc import Callable, Iterator, Sequence

import torch

from datamodules.samplers.prompt_sampler import PromptSampler
from support.errors import ConfigError
from support.seeding import derive_seed


class GRESOSampler(PromptSampler):
    """Go through the rows in a new order per pass and skip rows at random; each rollout continues where the last ended.

    All processes follow the same order with the same random numbers and keep their own part of the batch. No row occurs
    twice in a rollout. If a rollout cannot be filled because all rows of a small data set were considered, it is filled
    with the first skipped rows.

    Args:
        ids: ids of the rows' prompts.
        batch_size, seed, rank, processes: as in `PromptSampler`.
        skip: id -> probability of skipping this prompt, the same on all processes.
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
        self.passes = 0  # number of complete passes over the rows
        self.place = 0  # number of rows of the current pass that were considered
        self.considered = self.skipped = 0  # of the latest rollout, including its further prompts

    def _next(self) -> int:
        """The next row of the current pass, or the first of a new one."""
        if self.place == self.size:
            self.passes, self.place = self.passes + 1, 0
        self.place += 1
        return self._order(self.passes)[self.place - 1]

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
                skip = float(torch.rand((), generator=generator)) < self.skip(self.ids[index])
                (skipped if skip else chosen).append(index)
        self.considered, self.skipped = len(seen), len(skipped)
        return (chosen + skipped)[: self.batch_size]

    def spare(self, *key: int | str) -> Iterator[int]:
        """Further rows, through the same filter."""
        generator = torch.Generator().manual_seed(derive_seed("greso spare", self.seed, self.rank, *key))
        for index in super().spare(*key):
            skip = float(torch.rand((), generator=generator)) < self.skip(self.ids[index])
            self.considered, self.skipped = self.considered + 1, self.skipped + skip
            if not skip:
                yield index

    def state_dict(self) -> dict[str, int]:
        return super().state_dict() | {"passes": self.passes, "place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the position. Raises ConfigError if the checkpoint was made without GRESO."""
        if "place" not in state:
            raise ConfigError(
                "the checkpoint was made without GRESO; resume without callbacks.GRESO, or start a new run without "
                "--ckpt_path."
            )
        super().load_state_dict(state)
        self.passes, self.place = state["passes"], state["place"]
