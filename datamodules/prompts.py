"""Base class of the data modules that supply prompts to on-policy methods."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable

import lightning as L
from torch.utils.data import DataLoader

from datamodules.preferences import PairSource
from datamodules.rows import Row, check_rows
from datamodules.samplers.prompt_sampler import PromptLoader, PromptSampler
from support.errors import ConfigError
from support.seeding import derive_seed, run_seed


def drawn_places(total: int, size: int, seed: int) -> dict[int, None]:
    """`size` of the places 0 to total - 1, drawn at random by the seed, in the order of the draw, as keys.

    A safety split must be a random sample of the prompts: files are often sorted, so their last rows are of a kind.
    """
    return dict.fromkeys(random.Random(derive_seed("safety split", seed)).sample(range(total), size))


class PromptData(L.LightningDataModule, ABC):
    """Batches of data rows, each a dict with `prompt` (text or chat messages), usually `answer` and `task`.

    The module tokenizes, so the same data serve any model. The number of prompts per rollout is also a setting of the
    module (`module.batch`), so that it is set in one place.

    Args:
        seed: seed of the order of the prompts, and of procedural problems; the run's seed if None.
        val_batch: number of prompts evaluated at once.
        preferences: pairs that a method may train reward and cost models on.
    """

    #: columns that every row must have; rewards check the columns that they need themselves
    required: tuple[str, ...] = ("prompt",)
    #: (rows, prompts per rollout, seed, rank, processes) -> the sampler of the training prompts; callbacks that choose
    #: prompts set it before training. None draws every row once per epoch
    sampler: Callable[[list[Row], int, int, int, int], PromptSampler] | None = None

    def __init__(self, seed: int | None = None, val_batch: int = 64, preferences: PairSource | None = None) -> None:
        super().__init__()
        self.seed = run_seed() if seed is None else seed
        self.val_batch, self.preferences = val_batch, preferences
        self._rows: dict[str, list[Row]] = {}

    @abstractmethod
    def train_rows(self) -> list[Row]:
        """Rows to sample rollouts from."""

    @abstractmethod
    def val_rows(self) -> list[Row]:
        """Held-out rows."""

    def demonstration_rows(self) -> list[Row]:
        """Rows with `prompt` and `response` for a supervised term beside the method's own loss; empty by default."""
        return []

    def safety_rows(self) -> list[Row]:
        """Rows kept for one statistical test (HC-RLHF's D_s); empty by default."""
        return []

    def test_rows(self) -> list[Row]:
        """Rows of the test stage; the held-out rows by default."""
        return self.rows("val")

    def rows(self, split: str) -> list[Row]:
        """The checked rows of train, val, test, safety or demonstration, created once."""
        if split not in self._rows:
            rows = getattr(self, f"{split}_rows")()
            source = getattr(self, "source", None)
            where = f"the {split} split of {type(self).__name__}" + (f" ({source})" if source else "")
            required = ("prompt", "response") if split == "demonstration" else self.required
            if split == "val" and not rows and self._validates():
                raise ConfigError(
                    f"{where} has no rows to validate on; set data.val_size to 1 or more, correct the file or the "
                    "split's name, or set trainer.limit_val_batches to 0 for a run without validation."
                )
            may_be_empty = split in ("safety", "demonstration", "val")
            self._rows[split] = check_rows(rows, where, required) if rows or not may_be_empty else []
        return self._rows[split]

    def _validates(self) -> bool:
        """Whether the trainer's stage reads held-out rows."""
        return self.trainer is None or self.trainer.state.fn != "fit" or self.trainer.limit_val_batches != 0

    def setup(self, stage: str) -> None:
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("val",)}[stage]:
            self.rows(split)

    def train_dataloader(self) -> PromptLoader:
        assert self.trainer is not None
        batch = getattr(self.trainer.lightning_module, "batch", None)
        if batch is None:
            raise ConfigError(
                f"{type(self).__name__} supplies prompts to on-policy modules, but "
                f"{type(self.trainer.lightning_module).__name__} has no batch plan; use another data module, such as "
                "datamodules.Demonstrations or datamodules.PreferencePairs."
            )
        rows = self.rows("train")
        draw = (batch.prompts_per_rollout, self.seed, self.trainer.global_rank, self.trainer.world_size)
        sampler = PromptSampler(len(rows), *draw) if self.sampler is None else self.sampler(rows, *draw)
        sampler.updates = batch.updates_per_rollout
        return PromptLoader(rows, sampler)

    def _evaluation_loader(self, split: str) -> DataLoader[Row]:
        rows = self.rows(split)
        if self.trainer is not None:
            if len(rows) < self.trainer.world_size:
                raise ConfigError(
                    f"{type(self).__name__} has {len(rows)} row(s) of the split {split!r} for "
                    f"{self.trainer.world_size} processes, and a process without rows would leave the others waiting; "
                    "add rows (data.val_size), use fewer processes (trainer.devices), or set trainer.limit_val_batches "
                    "to 0."
                )
            # Every row on exactly one process: a padding sampler would count some rows twice.
            rows = rows[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(rows, batch_size=self.val_batch, collate_fn=list)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Row]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Row]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Row]:
        return self._evaluation_loader("val")
