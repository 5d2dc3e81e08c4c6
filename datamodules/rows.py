"""Data rows: read from JSONL, JSON, parquet or CSV files, a folder of them or the hub, and checked."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from support.errors import ConfigError
from support.files import shipped
from support.prompt_identity import check_prompt, check_response

Row = dict[str, Any]
#: columns that hold one text
TEXTS = {"response", "response_0", "response_1", "chosen", "rejected"}
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
#: what a CSV line that ends early has in place of its cells; no file can hold it, as it is no text in UTF-8
_ABSENT = "\ud800"
FORMATS |= {".jsonl.gz": "json", ".json.gz": "json", ".csv.gz": "csv"}


def read_rows(
    source: str,
    split: str = "train",
    columns: dict[str, str] | None = None,
    subset: str | None = None,
    numbers: Sequence[str] = (),
) -> list[Row]:
    """Read all rows as dicts, with columns renamed as `columns` says.

    Args:
        source: a file, a folder of files of one format, or owner/name on the hub; assets/... is also searched beside
            the installed packages.
        split: split of a hub data set; in a folder, the files whose name contains it (all files if none does).
        columns: this project's name -> the data's name, e.g. {"prompt": "question"}.
        subset: configuration name of a hub data set.
        numbers: columns of a CSV file whose cells are numbers or true and false, by either name; all others are text,
            so that 42 and 007 stay as written.

    Raises:
        ConfigError: for a missing file, an unknown format, an empty data set, an unreadable line or a missing column.
    """
    path = shipped(source)
    if path.exists():
        kind, files = _files(path, split)
        if kind == "json":
            rows = [row for file in files for row in read_json(file)]
        elif kind == "csv":
            named = {*numbers, *((columns or {}).get(name, name) for name in numbers)}
            rows = [row for file in files for row in read_csv(file, named)]
        else:
            rows = _table(source, kind, data_files=files)
    else:
        if source.startswith((".", "/", "~")) or _format(path) in FORMATS or source.count("/") != 1:
            raise ConfigError(
                f"the data file {source!r} does not exist (looked for {path.absolute()}); correct data.source."
            )
        rows = _table(source, source, name=subset, split=split)
    column_names = dict.fromkeys(name for row in rows for name in row)
    for ours, theirs in (columns or {}).items():
        if theirs not in column_names:
            raise ConfigError(
                f"data.columns maps {ours!r} to {theirs!r}, but {source!r} has no such column; choose one of "
                f"{list(column_names)}."
            )
    return [row | {ours: row.get(theirs) for ours, theirs in (columns or {}).items()} for row in rows]


def read_json(path: str | Path) -> list[Row]:
    """Read the rows of a JSONL file, or of a JSON file that is one list of objects.

    NaN, which pandas writes for missing values, becomes None.

    Raises:
        ConfigError: naming the file and the line, for invalid UTF-8, invalid JSON, a value that is not an object, or a
            text that no tokenizer can encode.
    """
    content = _content(Path(path))
    if Path(path).name.removesuffix(".gz").endswith(".json") and content.lstrip()[:1] == b"[":
        items = _parsed(content, f"the file {path}")
        return [_object(item, f"item {number} of the file {path}") for number, item in enumerate(items, 1)]
    lines = ((f"line {number} of the file {path}", line) for number, line in enumerate(content.split(b"\n"), 1))
    return [_object(_parsed(line, where), where) for where, line in lines if line.strip()]


def read_csv(path: str | Path, numbers: Collection[str] = ()) -> list[Row]:
    """The rows of a CSV file with a header. Cells are texts, and None where nothing is written.

    Args:
        numbers: columns whose cells are numbers, or true and false.

    Raises:
        ConfigError: naming the file and the line, for text that is not UTF-8, a line with too many or too few cells, or
            a cell that is not a number.
    """
    rows: list[Row] = []
    csv.field_size_limit(1 << 30)
    try:
        with io.StringIO(_content(Path(path)).decode("utf-8-sig"), newline="") as file:
            reader = csv.DictReader(file, strict=True, restval=_ABSENT)
            names = reader.fieldnames or []
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"the file {path} has the column {twice[0]!r} twice; rename or remove one of them.")
            for cells in reader:
                where = f"line {reader.line_num} of the file {path}"
                if None in cells:
                    raise ConfigError(
                        f"{where} has more cells than the header has names; put quotation marks around commas."
                    )
                if _ABSENT in cells.values():
                    raise ConfigError(
                        f"{where} has fewer cells than the header has names; if the file was cut off, download it "
                        "again, else write the commas of the empty cells."
                    )
                rows.append(
                    {
                        name: _cell(cell, f"{where}, column {name!r},") if name in numbers else cell or None
                        for name, cell in cells.items()
                    }
                )
    except UnicodeError as error:
        raise ConfigError(f"the file {path} is no text in UTF-8: {error}; save it as UTF-8.") from error
    except csv.Error as error:
        raise ConfigError(f"the file {path} is no CSV: {error}; mend it, or save it as JSONL.") from error
    return rows


def _content(path: Path) -> bytes:
    """The bytes of a file, decompressed if its name ends in .gz."""
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"the file {path} is no whole gzip file: {error}; download or compress it again.") from error


def _format(path: Path) -> str:
    """The part of a file's name that tells its format, such as .jsonl or .jsonl.gz."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _cell(cell: str | None, where: str) -> float | int | bool | None:
    text = (cell or "").strip()
    if not text:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if re.fullmatch(r"[-+]?\d{1,400}", text) else float(text)
    except ValueError as error:
        raise ConfigError(
            f"{where} holds {text[:40]!r}; it must be a number. Mend it, or take the column out of numbers."
        ) from error


def _parsed(content: bytes, where: str) -> Any:
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_constant)
        if rb"\u" in content:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair, "\ud800", is JSON but not text
        return value
    except UnicodeError as error:
        raise ConfigError(f"{where} is not valid UTF-8 text: {error}; correct or drop it.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid JSON: {error}; correct or drop it.") from error


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON number")


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where} is {str(value)[:40]!r}, but every row must be a JSON object with named columns; correct or drop "
            "it."
        )
    return value


def _table(source: str, kind: str, **settings: Any) -> list[Row]:
    """Read rows by the datasets library."""
    import datasets

    try:
        return [dict(row) for row in datasets.load_dataset(kind, **({"split": "train"} | settings))]
    except Exception as error:  # the library raises many types; each of them means that this source cannot be read
        raise ConfigError(
            f"the data source {source!r} (split {settings.get('split')!r}) cannot be read: {type(error).__name__}: "
            f"{error}. Check data.source and its split."
        ) from error


def _files(path: Path, split: str) -> tuple[str, list[str]]:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if _format(f) in FORMATS)
    if path.is_dir():
        files = [f for f in files if split in f.name.removesuffix(_format(f))] or files
    suffixes = {_format(f) for f in files}
    if len(suffixes) != 1 or not suffixes <= set(FORMATS):
        contents = sorted(suffixes) or "no data files"
        raise ConfigError(
            f"{path} has {contents}; set data.source to one file, or to a folder of files of one format: "
            f"{', '.join(FORMATS)}."
        )
    if not any(f.stat().st_size for f in files):
        raise ConfigError(f"{path} is empty; it must have at least one row.")
    return FORMATS[suffixes.pop()], [str(f) for f in files]


def check_rows(
    rows: list[Row],
    where: str,
    required: tuple[str, ...] = ("prompt",),
    texts: bool = True,
    default_ids: bool = True,
    turns: bool = False,
) -> list[Row]:
    """Check that there are rows and that each has the required columns.

    Args:
        where: name of the data for messages.
        required: columns that every row must have; `prompt` must not be empty.
        texts: whether responses must be texts; TRL's may be messages.
        default_ids: give rows without `id` their number as id.
        turns: whether a `response` may be a list of turns instead of a text (`check_response`).

    Raises:
        ConfigError: naming the data, the row's number and the column.
    """
    if not rows:
        raise ConfigError(f"{where} has no rows; check the file, the split's name and any filter on its rows.")
    for number, row in enumerate(rows):
        for column in required:
            if row.get(column) is None or (column == "prompt" and not row[column]):
                fault = f"its {column!r} is empty" if column in row else f"it has no {column!r}, only {sorted(row)}"
                raise ConfigError(
                    f"row {number} of {where} cannot be used: {fault}. Map the right column in data.columns, drop the "
                    "row, or list in data.required only the columns that the rewards need."
                )
        if turns:
            check_response(row.get("response"), f"row {number} of {where}")
        for column in TEXTS.intersection(required) if texts and not turns else ():
            if not isinstance(row[column], str):
                raise ConfigError(
                    f"row {number} of {where} has {str(row[column])[:40]!r} as its {column!r}; it must be a text. "
                    "Correct or drop the row, or map another column in data.columns."
                )
        if "prompt" in required:
            check_prompt(row["prompt"], f"row {number} of {where}")
        if default_ids:
            row.setdefault("id", f"{number}")
    return rows
