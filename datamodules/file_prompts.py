"""Prompt groups from files or a hub data set."""

from datamodules.preferences import PairSource
from datamodules.prompts import PromptData, drawn_places
from datamodules.rows import Row, read_rows
from support.errors import ConfigError


class FilePrompts(PromptData):
    """Prompt groups from files or the hub.

    Args:
        source: a JSONL, JSON, parquet or CSV file, a folder of them, or owner/name on the hub.
        split: the training split.
        subset: configuration name of a hub data set.
        val_source: another source for validation; by default the last `val_size` rows of the training split.
        val_split: split of `val_source`.
        val_size: number of held-out rows.
        safety_size: number of rows, drawn at random by the seed from those before the held-out ones, that are kept for
            a safety test.
        columns: this project's column name -> the data's, e.g. {prompt: question}.
        required: columns that every row must have.
        seed: seed of the order of the prompts; the run's seed if None.
        preferences: pairs that a method may train reward and cost models on.
        demonstrations: a source with the columns prompt and response, for a supervised term beside a method's own loss.
        numbers: columns of a CSV file that hold numbers, such as a curriculum's `level`; the cells of the others are
            texts, so that 42 and 007 stay as written.
    """

    def __init__(
        self,
        source: str,
        split: str = "train",
        subset: str | None = None,
        val_source: str | None = None,
        val_split: str = "test",
        val_size: int = 128,
        safety_size: int = 0,
        columns: dict[str, str] | None = None,
        required: list[str] | None = None,
        seed: int | None = None,
        preferences: PairSource | None = None,
        demonstrations: str | None = None,
        numbers: list[str] | None = None,
    ) -> None:
        super().__init__(seed=seed, preferences=preferences)
        if val_size < 0 or safety_size < 0:
            raise ConfigError(
                f"data.val_size is {val_size} and data.safety_size is {safety_size}; both are numbers of rows and must "
                "be 0 or above."
            )
        self.source, self.split, self.subset, self.columns = source, split, subset, columns
        self.demonstrations, self.numbers = demonstrations, numbers or []
        self.val_source, self.val_split, self.val_size, self.safety_size = val_source, val_split, val_size, safety_size
        self.required = tuple(required) if required is not None else type(self).required
        self._all: list[Row] | None = None

    def _parts(self) -> dict[str, list[Row]]:
        if self._all is None:
            self._all = read_rows(self.source, self.split, self.columns, self.subset, self.numbers)
        held_out = 0 if self.val_source else self.val_size
        train_size = len(self._all) - held_out - self.safety_size
        if train_size <= 0:
            raise ConfigError(
                f"{self.source!r} has {len(self._all)} rows; {held_out} for validation and {self.safety_size} for the "
                "safety test leave none to train on. Lower data.val_size or data.safety_size."
            )
        rest = self._all[: train_size + self.safety_size]
        drawn = drawn_places(len(rest), self.safety_size, self.seed)
        return {
            "train": [row for place, row in enumerate(rest) if place not in drawn],
            "safety": [rest[place] for place in drawn],
            "val": self._all[len(rest) :],
        }

    def train_rows(self) -> list[Row]:
        return self._parts()["train"]

    def val_rows(self) -> list[Row]:
        if self.val_source:
            return read_rows(self.val_source, self.val_split, self.columns, self.subset, self.numbers)[: self.val_size]
        return self._parts()["val"]

    def demonstration_rows(self) -> list[Row]:
        return read_rows(self.demonstrations) if self.demonstrations else []

    def safety_rows(self) -> list[Row]:
        return self._parts()["safety"]
