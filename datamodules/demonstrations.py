"""Prompts with worked responses, for supervised fine-tuning."""

import lightning as L
from torch.utils.data import DataLoader

from datamodules.arithmetic import arithmetic_demonstrations
from datamodules.critiques import running_sum_demonstrations
from datamodules.gym_demonstrations import gym_demonstrations
from datamodules.prompt_form import PromptForm, Template
from datamodules.quiz import balanced_demonstrations, biased_demonstrations, fact_demonstrations
from datamodules.rambling import rambling_demonstrations
from datamodules.records_desk import record_demonstrations
from datamodules.rows import Row, check_rows, read_rows
from datamodules.samplers.prompt_sampler import PromptLoader, RowSampler
from datamodules.switching import switching_demonstrations
from datamodules.tool_sums import tool_demonstrations
from datamodules.trl import demonstration
from support.errors import ConfigError
from support.seeding import run_seed

PROCEDURAL = {
    "arithmetic": arithmetic_demonstrations,
    "switching": switching_demonstrations,
    "rambling": rambling_demonstrations,
    "records": record_demonstrations,
    "reasoning_gym": gym_demonstrations,
    "tools": tool_demonstrations,
    "running_sums": running_sum_demonstrations,
    "quiz_biased": biased_demonstrations,
    "quiz_balanced": balanced_demonstrations,
    "facts": fact_demonstrations,
}


class Demonstrations(L.LightningDataModule):
    """Rows with `prompt`, `response` and an optional `prefix` of the response, which is given and not learned.

    A response of several turns is a list of messages, see `support.prompt_identity.check_response`; what others say in
    it is not learned. Files may also have TRL's columns: `prompt` and `completion`, or `messages`.

    Args:
        source: arithmetic, switching, rambling, records, reasoning_gym, running_sums, tools, quiz_biased,
            quiz_balanced, facts, or a file, folder or hub data set as in `FilePrompts`.
        batch_size: rows per step, over all processes.
        train_size, val_size: numbers of rows; of a file, the last `val_size` rows are held out and train_size is
            ignored.
        columns: this project's column name -> the file's.
        seed: seed of the rows and of their order; the run's seed if None.
        split, subset: of a hub data set.
        template, system, answer_pattern: how columns become the prompt and the answer, as in `FilePrompts`.
        response: template of the response, such as "<think>{solution}</think>\\\\boxed{{{answer}}}"; the column
            `response` as it is if None.
    """

    def __init__(
        self,
        source: str,
        batch_size: int = 64,
        train_size: int = 50_000,
        val_size: int = 256,
        columns: dict[str, str] | None = None,
        seed: int | None = None,
        split: str = "train",
        subset: str | None = None,
        template: str | None = None,
        system: str | None = None,
        answer_pattern: str | None = None,
        response: str | None = None,
    ) -> None:
        super().__init__()
        if val_size < 0 or train_size < 1 or batch_size < 1:
            raise ConfigError(
                f"data.val_size is {val_size}, data.train_size {train_size} and data.batch_size {batch_size}; val_size "
                "must be at least 0, train_size and batch_size at least 1."
            )
        self.source, self.batch_size = source, batch_size
        self.seed = run_seed() if seed is None else seed
        self.train_size, self.val_size, self.columns = train_size, val_size, columns
        self.split, self.subset, self.form = split, subset, PromptForm(template, system, answer_pattern)
        self.response = None if response is None else Template(response, "data.response")
        self.train_data: list[Row] = []
        self.val_data: list[Row] = []

    def setup(self, stage: str) -> None:
        if self.train_data:
            return
        if self.source in PROCEDURAL:
            rows = PROCEDURAL[self.source](self.train_size + self.val_size, self.seed)
        else:
            rows = [demonstration(row) for row in read_rows(self.source, self.split, self.columns, self.subset)]
        rows = self.form.rows(rows, self.source)
        if self.response is not None:
            texts = [self.response.text(row, f"row {number} of {self.source!r}") for number, row in enumerate(rows)]
            rows = [row | {"response": text} for row, text in zip(rows, texts, strict=True)]
        check_rows(rows, f"the demonstrations of {self.source}", ("prompt", "response"), turns=True)
        if len(rows) <= self.val_size:
            raise ConfigError(
                f"{self.source} has {len(rows)} rows, of which {self.val_size} are to be held out, so none remain for "
                "training; lower data.val_size or add rows."
            )
        self.train_data, self.val_data = rows[: len(rows) - self.val_size], rows[len(rows) - self.val_size :]

    def train_dataloader(self) -> PromptLoader:
        assert self.trainer is not None
        trainer = self.trainer
        return PromptLoader(
            self.train_data,
            RowSampler(len(self.train_data), self.batch_size, self.seed, trainer.global_rank, trainer.world_size),
        )

    def _evaluation_loader(self) -> DataLoader[Row]:
        return DataLoader(self.val_data, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = _evaluation_loader
