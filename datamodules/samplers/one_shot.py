"""Rollouts filled with copies of a few prompts (1-shot RLVR, arXiv 2504.20571)."""

from collections.abc import Iterator, Sequence

from datamodules.samplers.prompt_sampler import PromptSampler


class OneShotSampler(PromptSampler):
    """Fill every rollout with copies of a few rows in turn; each copy is a separate prompt group.

    Args:
        chosen: indices of the rows to copy.
        size: number of rows in the data set.
        batch_size, seed, rank, processes: as in `PromptSampler`.
    """

    def __init__(
        self, chosen: Sequence[int], size: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        super().__init__(max(size, batch_size), batch_size, seed, rank, processes)
        self.chosen = list(chosen)

    def draw(self, rollout: int) -> list[int]:
        """The rows of one rollout, over all processes."""
        first = rollout * self.batch_size
        return [self.chosen[number % len(self.chosen)] for number in range(first, first + self.batch_size)]

    def spare(self, *key: int | str) -> Iterator[int]:
        """No rows: there are no further prompts."""
        return iter(())
