"""Data rows: read from JSONL, JSON, parquet or CSV files, a folder of them or the hub, and checked."""

from pathlib import Path
from typing import Any

from support.errors import ConfigError

Row = dict[str, Any]
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


def check_rows(rows: list[Row], where: str, required: tuple[str, ...] = ("prompt",)) -> list[Row]:
    """Refuse an empty data set and rows without a required column; give rows their `id`.

    Raises:
        ConfigError: naming the place, the row's number and the column.
    """
    if not rows:
        raise ConfigError(f"{where} has no rows; check the file, the split's name and any filter on its rows.")
    for number, row in enumerate(rows):
        for column in required:
            if row.get(column) is None or (column == "prompt" and not row[column]):
                found = f"its {column!r} is empty" if column in row else f"it has no {column!r}, only {sorted(row)}"
                raise ConfigError(
                    f"row {number} of {where} cannot be used: {found}. Name the right column in data.columns, drop the row, or list in data.required only "
                    "what the rewards need."
                )
        row.setdefault("id", f"{number}")
    return rows
