"""Texts of writers that outlive the run: what was written is read from files, and only what is missing is asked for."""

import inspect
import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from assets.writers import Writer
from support.files import atomic_write_text, fingerprint
from support.seeding import derive_seed

Row = dict[str, Any]


class KeptTexts:
    """Asks writers about data rows, a few at a time, and keeps their texts in a folder.

    Args:
        folder: where files are written, one for each few rows.
        batch: rows per request.
        seed: seed of the draws.
    """

    def __init__(self, folder: Path, batch: int, seed: int) -> None:
        self.folder, self.batch, self.seed = folder, batch, seed

    def of(self, writer: Writer, rows: list[Row], samples: int) -> list[list[str]]:
        """Up to `samples` texts per row that are not blank.

        Raises:
            ConfigError: if the writer writes nothing for the first rows.
        """
        texts: list[list[str]] = []
        settings = described(writer)
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            key = fingerprint([settings, part, samples, self.seed])
            path = self.folder / f"{key[:32]}.json"
            written = self._read(path, len(part))
            missing = [place for place, of_row in enumerate(written) if not of_row]
            if missing:
                seed = derive_seed("kept texts", self.seed, key, len(missing))
                ask = writer.write if any(texts) or any(written) else writer.texts
                new = ask([part[place] for place in missing], samples, seed)
                for place, of_row in zip(missing, new, strict=True):
                    written[place] = [text for text in of_row if text.strip()]
                atomic_write_text(path, json.dumps(written))
            texts += written
        return texts

    def _read(self, path: Path, count: int) -> list[list[str]]:
        try:
            written = json.loads(path.read_text())
        except (OSError, ValueError):
            written = []
        return written if len(written) == count else [[] for _ in range(count)]


def described(value: Any, depth: int = 6) -> Any:
    """The settings of an object as plain data that changes when the object would write something else.

    A folder stands for its files with sizes and times, a function for its text.
    """
    if isinstance(value, str) and 0 < len(value) < 4096 and Path(value).is_dir():
        files = sorted(path for path in Path(value).rglob("*") if path.is_file())
        return [value, [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]]
    if value is None or isinstance(value, str | int | float):
        return value
    if depth == 0:
        return type(value).__name__
    if isinstance(value, dict):
        return {str(key): described(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [described(item, depth - 1) for item in value]
    if inspect.isfunction(value):
        return [value.__module__, value.__qualname__, inspect.getsource(value)]
    if is_dataclass(value) or hasattr(value, "__dict__"):
        public = {name: item for name, item in vars(value).items() if not name.startswith("_")}
        return [type(value).__qualname__, described(public, depth - 1)]
    return type(value).__name__
