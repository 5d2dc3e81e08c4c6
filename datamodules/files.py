"""Rows from JSONL, JSON, parquet or CSV files, a folder of them, or a data set of the hub."""

from pathlib import Path
from typing import Any

from datamodules.prompts import PromptData, Row
from support.errors import ConfigError

FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_rows(source: str, split: str = "train", columns: dict[str, str] | None = None, subset: str | None = None) -> list[Row]:
    """All rows as dicts, with the wanted columns renamed.

    Args:
        source: a file, a folder of files of one format, or owner/name on the hub.
        split: the hub data set's split; of a folder, the files whose name contains it (all files if none does).
        columns: this project's name -> the data's name, e.g. {"prompt": "question"}.
        subset: the hub data set's configuration name.

    Raises:
        ConfigError: for a missing file, an unknown format, an empty data set or a column that is not there.
    """
    import datasets

    path = Path(source).expanduser()
    try:
        if path.exists():
            kind, files = _files(path, split)
            table = datasets.load_dataset(kind, data_files=files, split="train")
        elif source.startswith((".", "/", "~")) or path.suffix in FORMATS or source.count("/") != 1:
            raise ConfigError(f"the data file {source!r} does not exist (looked at {path.absolute()}); check data.source.")
        else:
            table = datasets.load_dataset(source, subset, split=split)
    except ConfigError:
        raise
    except Exception as error:  # the hub's library raises many kinds; all of them mean that this source cannot be read
        raise ConfigError(f"the data source {source!r} (split {split!r}) cannot be read: {type(error).__name__}: {error}") from error
    for ours, theirs in (columns or {}).items():
        if theirs not in table.column_names:
            raise ConfigError(f"data.columns names {theirs!r} for {ours!r}, but {source!r} has the columns {table.column_names}.")
    rows = [dict(row) for row in table]
    for row in rows:
        row.update({ours: row[theirs] for ours, theirs in (columns or {}).items()})
    return rows


def _files(path: Path, split: str) -> tuple[str, list[str]]:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in FORMATS)
    if path.is_dir():
        files = [f for f in files if split in f.stem] or files
    suffixes = {f.suffix for f in files}
    if len(suffixes) != 1 or not suffixes <= set(FORMATS):
        found = sorted(suffixes) or "no data files"
        raise ConfigError(f"{path} holds {found}; give one file or a folder of one format: {', '.join(FORMATS)}.")
    if not any(f.stat().st_size for f in files):
        raise ConfigError(f"{path} is empty; it must hold at least one row.")
    return FORMATS[suffixes.pop()], [str(f) for f in files]


class FilePrompts(PromptData):
    """Prompt groups from files or the hub.

    Args:
        source: a JSONL, JSON, parquet or CSV file, a folder of them, or owner/name on the hub.
        split: the training split. subset: the hub's configuration name.
        val_source: another source for validation; by default the last `val_size` rows of the training split.
        val_split: its split. val_size: held-out rows. safety_size: rows before them kept for a safety test.
        columns: this project's column name -> the data's, e.g. {prompt: question}.
        required: columns that every row must have. seed: of the order of the prompts.
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
    ) -> None:
        super().__init__(seed=seed)
        self.source, self.split, self.subset, self.columns = source, split, subset, columns
        self.val_source, self.val_split, self.val_size, self.safety_size = val_source, val_split, val_size, safety_size
        self.required = tuple(required) if required is not None else type(self).required
        self._all: list[Row] | None = None

    def _parts(self) -> dict[str, list[Row]]:
        if self._all is None:
            self._all = read_rows(self.source, self.split, self.columns, self.subset)
        held_out = 0 if self.val_source else self.val_size
        kept = len(self._all) - held_out - self.safety_size
        if kept <= 0:
            raise ConfigError(
                f"{self.source!r} has {len(self._all)} rows; {held_out} for validation and {self.safety_size} for the safety "
                "test leave none to train on. Lower data.val_size or data.safety_size."
            )
        return {"train": self._all[:kept], "safety": self._all[kept : kept + self.safety_size], "val": self._all[kept + self.safety_size :]}

    def train_rows(self):
        return self._parts()["train"]

    def val_rows(self):
        if self.val_source:
            return read_rows(self.val_source, self.val_split, self.columns, self.subset)[: self.val_size]
        return self._parts()["val"]

    def safety_rows(self) -> list[dict[str, Any]]:
        return self._parts()["safety"]
