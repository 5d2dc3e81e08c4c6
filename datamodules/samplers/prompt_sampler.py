"""Which prompts come next: an order that is a function of (seed, epoch), and a position that is state."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from support.errors import ConfigError
from support.seeding import derive_seed


class PromptSampler(Sampler[list[int]]):
    """Batches of row indices, each row once an epoch; the rest that does not fill a batch waits for another epoch's order.

    Every process draws the same global batch and keeps its own contiguous share of it, so a prompt's group stays on one process
    and the prompts of rollout n do not depend on the number of processes.

    Args:
        size: number of rows in the data set.
        batch_size: prompts a rollout, over all processes.
        seed: of the order.
        rank, processes: this process and how many there are.

    Raises:
        ConfigError: for an empty data set, one smaller than a batch, or a batch that the processes cannot share evenly.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        if size == 0:
            raise ConfigError(
                "the training data set is empty; check the file, the split's name and any filter on its rows."
            )
        if batch_size < 1 or size < batch_size:
            raise ConfigError(
                f"{batch_size} prompts a rollout cannot be drawn from {size} rows; lower batch.prompts_per_rollout or add rows."
            )
        if batch_size % processes:
            raise ConfigError(
                f"{batch_size} prompts a rollout cannot be shared evenly by {processes} processes; change either number."
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.processes = rank, processes
        self.epoch = self.position = 0

    def __len__(self) -> int:
        """Rollouts of a whole epoch, wherever the position is: Lightning compares it with its own progress."""
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derive_seed("prompt order", self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        share = self.batch_size // self.processes
        while self.position < len(self):
            first = self.position * self.batch_size + self.rank * share
            self.position += 1
            yield order[first : first + share]
        self.position, self.epoch = 0, self.epoch + 1

    def spare(self, *key: int | str) -> Iterator[int]:
        """Indices of further rows in an order that depends on (seed, key) alone; the position is not moved."""
        generator = torch.Generator().manual_seed(derive_seed("spare prompts", self.seed, self.rank, *key))
        yield from torch.randperm(self.size, generator=generator).tolist()

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position, "size": self.size, "batch_size": self.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ConfigError when the saved position belongs to another data set or batch size."""
        for name in ("size", "batch_size"):
            if state[name] != getattr(self, name):
                raise ConfigError(
                    f"the checkpoint's prompt position was saved with {name}={state[name]}, this run has {getattr(self, name)}; "
                    "resume with the same data and batch.prompts_per_rollout, or start without the checkpoint."
                )
        self.epoch, self.position = state["epoch"], state["position"]


class PromptLoader(DataLoader[dict[str, Any]]):
    """Yields lists of data rows; Lightning saves and restores its position through state_dict and load_state_dict."""

    def __init__(self, rows: Sequence[dict[str, Any]], sampler: PromptSampler) -> None:
        self.prompt_sampler = sampler
        # A generator of its own: each new iterator of a DataLoader otherwise draws from the global one, and a resumed run
        # makes a different number of iterators.
        super().__init__(rows, batch_sampler=sampler, collate_fn=list, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]

    def spare_rows(self, *key: int | str) -> Iterator[dict[str, Any]]:
        """Further rows beside the batches, for methods that replace some; a function of (seed, rank, key)."""
        return (self.dataset[index] for index in self.prompt_sampler.spare(*key))

    def state_dict(self) -> dict[str, int]:
        return self.prompt_sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.prompt_sampler.load_state_dict(state)
