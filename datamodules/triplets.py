"""Triplets (anchor, positive, negative) for embedders (T-VEC, arXiv 2504.16460).

python main.py fit --config configs/t_vec.yaml
"""

import lightning as L
from torch.utils.data import DataLoader

from datamodules.jargon import general, jargon
from datamodules.rows import Row, check_rows, read_rows
from datamodules.samplers.prompt_sampler import PromptLoader, RowSampler
from support.errors import ConfigError
from support.prompt_identity import split_by_prompt
from support.seeding import run_seed

PARTS = ("anchor", "positive", "negative")


class Triplets(L.LightningDataModule):
    """Rows with `anchor`, `positive` and `negative`, optionally also `concept` and `domain`.

    Training and held-out rows of a file have no concept in common (without that column: no anchor). Held-out rows of
    another `domain` than the training's are the control: their accuracy is logged by domain.

    Args:
        source: jargon, which is made here, or a file, folder or hub data set as in `FilePrompts`.
        batch_size: triplets per step, over all processes.
        train_size, val_size: numbers of triplets of the jargon; ignored for files.
        val_share: fraction of a file's concepts that are held out.
        control: a file of general triplets for validation; those of `datamodules/jargon.py` if None, "" for none.
        columns: this project's column name -> the file's.
        seed: seed of the rows and of their order; the run's seed if None.
        split, subset: of a hub data set.

    Raises:
        ConfigError: for sizes or shares that leave nothing, and for rows that lack a text.
    """

    def __init__(
        self,
        source: str = "jargon",
        batch_size: int = 32,
        train_size: int = 20_000,
        val_size: int = 256,
        val_share: float = 0.1,
        control: str | None = None,
        columns: dict[str, str] | None = None,
        seed: int | None = None,
        split: str = "train",
        subset: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or train_size < 1 or val_size < 1 or not 0 < val_share < 1:
            raise ConfigError(
                f"data.batch_size is {batch_size}, data.train_size {train_size}, data.val_size {val_size} and "
                f"data.val_share {val_share}; the first three must be at least 1, the share between 0 and 1."
            )
        self.source, self.batch_size, self.train_size, self.val_size = source, batch_size, train_size, val_size
        self.val_share, self.control, self.columns = val_share, control, columns
        self.split, self.subset = split, subset
        self.seed = run_seed() if seed is None else seed
        self.train_data: list[Row] = []
        self.val_data: list[Row] = []

    def setup(self, stage: str) -> None:
        if self.train_data:
            return
        if self.source == "jargon":
            self.train_data = jargon(self.train_size, self.seed, held_out=False)
            held_out = jargon(self.val_size, self.seed, held_out=True)
        else:
            rows = self._read(self.source, "jargon")
            keyed = [row | {"prompt": row.get("concept") or row["anchor"]} for row in rows]
            train, kept = split_by_prompt(keyed, self.val_share)
            if not train or not kept:
                raise ConfigError(
                    f"{self.source} has {len(rows)} triplets, of which data.val_share {self.val_share} leaves "
                    f"{len(train)} for training and {len(kept)} held out; change it or add concepts."
                )
            self.train_data, held_out = [
                [{name: value for name, value in row.items() if name != "prompt"} for row in part]
                for part in (train, kept)
            ]
        control = general(len(held_out), self.seed) if self.control is None else []
        if self.control:
            control = self._read(self.control, "general")
        self.val_data = held_out + control

    def _read(self, source: str, domain: str) -> list[Row]:
        rows = check_rows(read_rows(source, self.split, self.columns, self.subset), source, PARTS)
        for number, row in enumerate(rows):
            for name in PARTS:
                if not isinstance(row[name], str) or not row[name].strip():
                    raise ConfigError(
                        f"row {number} of {source} has {str(row[name])[:40]!r} as its {name!r}; it must be a text. "
                        "Correct or drop the row, or map another column in data.columns."
                    )
        return [row | {"domain": row.get("domain") or domain} for row in rows]

    def train_dataloader(self) -> PromptLoader:
        assert self.trainer is not None
        trainer = self.trainer
        sampler = RowSampler(len(self.train_data), self.batch_size, self.seed, trainer.global_rank, trainer.world_size)
        return PromptLoader(self.train_data, sampler)

    def _evaluation_loader(self) -> DataLoader[Row]:
        return DataLoader(self.val_data, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = _evaluation_loader
