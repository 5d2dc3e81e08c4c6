"""The basic prompt sampler, whose order is a function of (seed, epoch) and whose position is state, and its loader."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from support.errors import ConfigError
from support.processes import part_of_process
from support.seeding import derive_seed


class PromptSampler(Sampler[list[int]]):
    """Batches of row indices, each row at most once per epoch; rows that fill no batch wait for the next.

    Every process draws the same global batch and keeps its own part of each of its updates, so a prompt's group stays
    on one process and the prompts of rollout n, and of each update, do not depend on the number of processes.
    Subclasses override `draw`.

    Args:
        size: number of rows in the data set.
        batch_size: prompts per rollout, over all processes.
        seed: seed of the order.
        rank, processes: rank of this process and number of processes.

    Raises:
        ConfigError: for an empty data set, one smaller than a batch, or a batch that the processes cannot share evenly.
    """

    #: the key of the batch size, and what it counts; for messages
    setting, counted = "batch.prompts_per_rollout", "prompts per rollout"

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        if size == 0:
            raise ConfigError(
                "the training data set is empty; check the file, the split's name and any filter on its rows."
            )
        if batch_size < 1 or size < batch_size:
            raise ConfigError(
                f"{batch_size} {self.counted} cannot be drawn from {size} rows; set {self.setting} to "
                f"1 or more and at most {size}, or add rows."
            )
        if batch_size % processes:
            raise ConfigError(
                f"{batch_size} {self.counted} cannot be shared evenly by {processes} processes; set "
                f"{self.setting} to a multiple of the number of processes, or change trainer.devices."
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.processes = rank, processes
        #: number of updates that a rollout is divided into
        self.updates = 1
        self.epoch = self.position = 0
        self._latest_order: tuple[int, list[int]] = (-1, [])  # (number of the pass, its order)

    def __len__(self) -> int:
        """Rollouts per epoch, independent of the position: Lightning compares it with its own progress."""
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        # As many rollouts as an epoch has, from the position on. The next epoch begins with its last rollout's draw:
        # a trainer that knows the length stops there, and what followed the last `yield` would not run.
        for _ in range(len(self)):
            rollout = self.epoch * len(self) + self.position
            self.epoch, self.position = divmod(rollout + 1, len(self))
            yield part_of_process(self.draw(rollout), self.rank, self.processes, self.updates)

    def draw(self, rollout: int) -> list[int]:
        """The rows of one rollout, over all processes."""
        epoch, position = divmod(rollout, len(self))
        return self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def _order(self, number: int) -> list[int]:
        """The order of all rows in one pass over the data, a function of (seed, number)."""
        if self._latest_order[0] != number:
            generator = torch.Generator().manual_seed(derive_seed("prompt order", self.seed, number))
            self._latest_order = (number, torch.randperm(self.size, generator=generator).tolist())
        return self._latest_order[1]

    def spare(self, *key: int | str) -> Iterator[int]:
        """Indices of further rows for this process, in an order that depends on (seed, rank, key) alone.

        The position does not change.
        """
        generator = torch.Generator().manual_seed(derive_seed("spare prompts", self.seed, self.rank, *key))
        yield from torch.randperm(self.size, generator=generator).tolist()

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position, "size": self.size, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the position. Raises ConfigError if it was saved with another data set or batch size."""
        for name in ("size", "batch_size"):
            if state[name] != getattr(self, name):
                raise ConfigError(
                    f"the checkpoint's prompt position was saved with {name}={state[name]}, but this run has "
                    f"{name}={getattr(self, name)}; resume with the same data and {self.setting}, or start "
                    "without --ckpt_path."
                )
        # Earlier versions wrote the end of an epoch as its length.
        self.epoch, self.position = divmod(state["epoch"] * len(self) + state["position"], len(self))


class RowSampler(PromptSampler):
    """The same for rows that are learned from as they are, without rollouts."""

    setting, counted = "data.batch_size", "rows per step"


class PromptLoader(DataLoader[dict[str, Any]]):
    """Loader of lists of data rows; Lightning saves and restores its position by state_dict and load_state_dict."""

    def __init__(self, rows: Sequence[dict[str, Any]], sampler: PromptSampler) -> None:
        self.prompt_sampler = sampler
        # Its own generator: each new iterator of a DataLoader otherwise draws from the global one, and a resumed run
        # makes a different number of iterators.
        generator = torch.Generator().manual_seed(0)
        super().__init__(rows, batch_sampler=sampler, collate_fn=list, generator=generator)  # type: ignore[arg-type]

    def spare_rows(self, *key: int | str) -> Iterator[dict[str, Any]]:
        """Further rows beside the batches, for methods that replace prompts; a function of (seed, rank, key)."""
        return (self.dataset[index] for index in self.prompt_sampler.spare(*key))

    def state_dict(self) -> dict[str, int]:
        return self.prompt_sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.prompt_sampler.load_state_dict(state)
