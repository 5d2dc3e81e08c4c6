"""Prompts with worked responses, for supervised fine-tuning."""

import lightning as L
from torch.utils.data import DataLoader

from datamodules.arithmetic import arithmetic_demonstrations
from datamodules.gym_demonstrations import gym_demonstrations
from datamodules.rambling import rambling_demonstrations
from datamodules.records_desk import record_demonstrations
from datamodules.rows import Row, check_rows, read_rows
from datamodules.samplers.prompt_sampler import PromptLoader, PromptSampler
from datamodules.switching import switching_demonstrations
from datamodules.trl import demonstration
from support.errors import ConfigError
from support.seeding import run_seed

PROCEDURAL = {
    "arithmetic": arithmetic_demonstrations,
    "switching": switching_demonstrations,
    "rambling": rambling_demonstrations,
    "records": record_demonstrations,
    "reasoning_gym": gym_demonstrations,
}


class Demonstrations(L.LightningDataModule):
    """Rows with `prompt`, `response` and an optional `prefix` of the response that is given and not learned; of files also TRL's, with `prompt` and
    `completion`, or `messages`.

    Args:
        source: arithmetic, switching, rambling, records, reasoning_gym, or a file, folder or hub data set as in `FilePrompts`.
        batch_size: rows of a step, over all processes.
        train_size, val_size: rows; of a file, the last `val_size` rows are held out and train_size is ignored.
        columns: this project's column name -> the file's.
        seed: of the rows and of their order.
    """

    def __init__(
        self,
        source: str,
        batch_size: int = 64,
        train_size: int = 50_000,
        val_size: int = 256,
        columns: dict[str, str] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if val_size < 0 or train_size < 1 or batch_size < 1:
            raise ConfigError(
                f"data.val_size is {val_size}, data.train_size {train_size} and data.batch_size {batch_size}; needs 0 or more, 1 or more and 1 or more."
            )
        self.source, self.batch_size = source, batch_size
        self.seed = run_seed() if seed is None else seed
        self.train_size, self.val_size, self.columns = train_size, val_size, columns
        self.train_data: list[Row] = []
        self.val_data: list[Row] = []

    def setup(self, stage: str) -> None:
        if self.train_data:
            return
        if self.source in PROCEDURAL:
            rows = PROCEDURAL[self.source](self.train_size + self.val_size, self.seed)
        else:
            rows = [demonstration(row) for row in read_rows(self.source, columns=self.columns)]
        check_rows(rows, f"the demonstrations of {self.source}", ("prompt", "response"))
        if len(rows) <= self.val_size:
            raise ConfigError(
                f"{self.source} has {len(rows)} rows, of which {self.val_size} are to be held out; lower data.val_size."
            )
        self.train_data, self.val_data = rows[: len(rows) - self.val_size], rows[len(rows) - self.val_size :]

    def train_dataloader(self) -> PromptLoader:
        assert self.trainer is not None
        trainer = self.trainer
        return PromptLoader(
            self.train_data,
            PromptSampler(len(self.train_data), self.batch_size, self.seed, trainer.global_rank, trainer.world_size),
        )

    def _evaluation_loader(self) -> DataLoader[Row]:
        return DataLoader(self.val_data, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = _evaluation_loader
