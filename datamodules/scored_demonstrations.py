"""Demonstrations to learn from, and prompts of other data modules whose completions a validation scores."""

from torch.utils.data import DataLoader

from datamodules.demonstrations import Demonstrations
from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError


class _Joined(PromptData):
    """The held-out rows of several data modules; ids say which of them a row is from."""

    def __init__(self, parts: list[PromptData]) -> None:
        super().__init__()
        self.parts = parts

    def train_rows(self) -> list[Row]:
        return []

    def val_rows(self) -> list[Row]:
        return self._joined("val")

    def test_rows(self) -> list[Row]:
        return self._joined("test")

    def _joined(self, split: str) -> list[Row]:
        if len(self.parts) == 1:
            return self.parts[0].rows(split)
        return [
            row | {"id": f"{number}/{row['id']}"} for number, part in enumerate(self.parts) for row in part.rows(split)
        ]


class ScoredDemonstrations(Demonstrations):
    """Rows with `prompt` and `response` to learn from; validation, test and prediction read other data modules.

    Args:
        source: as in `Demonstrations`. All rows of a file are training rows.
        prompts: data modules whose held-out rows are validated on, together; rewards.PerTask tells their tasks apart.
        batch_size, train_size, columns, seed, template, system, response: as in `Demonstrations`.
    """

    def __init__(
        self,
        source: str,
        prompts: list[PromptData],
        batch_size: int = 64,
        train_size: int = 50_000,
        columns: dict[str, str] | None = None,
        seed: int | None = None,
        template: str | None = None,
        system: str | None = None,
        response: str | None = None,
    ) -> None:
        super().__init__(
            source,
            batch_size=batch_size,
            train_size=train_size,
            val_size=0,
            columns=columns,
            seed=seed,
            template=template,
            system=system,
            response=response,
        )
        if not prompts:
            raise ConfigError(
                "data.prompts is empty; give at least one data module whose held-out rows are validated on."
            )
        self.prompts = prompts
        self._joined = _Joined(prompts)

    def setup(self, stage: str) -> None:
        if stage == "fit":  # other stages need no file of demonstrations
            super().setup(stage)
        self.rows("test" if stage == "test" else "val")

    def rows(self, split: str) -> list[Row]:
        """The rows of train, val or test; empty for other splits."""
        if split == "train":
            return self.train_data
        self._joined.trainer = self.trainer
        return self._joined.rows(split) if split in ("val", "test") else []

    def val_dataloader(self) -> DataLoader[Row]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Row]:
        return self._loader("test")

    predict_dataloader = val_dataloader

    def _loader(self, split: str) -> DataLoader[Row]:
        self.rows(split)
        return self._joined._evaluation_loader(split)
