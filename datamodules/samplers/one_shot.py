"""Rollouts filled with copies of a few prompts (1-shot RLVR, arXiv 2504.20571)."""

from collections.abc import Iterator, Sequence

from datamodules.samplers.prompt_sampler import PromptSampler


class OneShotSampler(PromptSampler):
    """A rollout is filled with copies of a few rows in turn; each copy is a group of its own.

    Args:
        chosen: indices of the rows. size: of the data set. batch_size, seed, rank, processes: as in `PromptSampler`.
    """

    def __init__(
        self, chosen: Sequence[int], size: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        super().__init__(max(size, batch_size), batch_size, seed, rank, processes)
        self.chosen = list(chosen)

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // self.processes
        while self.position < len(self):
            first = (self.epoch * len(self) + self.position) * self.batch_size + self.rank * share
            self.position += 1
            yield [self.chosen[place % len(self.chosen)] for place in range(first, first + share)]
        self.position, self.epoch = 0, self.epoch + 1

    def spare(self, *key: int | str) -> Iterator[int]:
        """Nothing: there are no further prompts."""
        return iter(())
