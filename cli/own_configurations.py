"""The saved configurations that this installation wrote itself.

A configuration names classes, and a class is code. The one beside a checkpoint is therefore used without asking only if
a run of this installation wrote it: the cache holds the SHA-256 of each.
"""

import hashlib
from pathlib import Path

from support.files import cache_folder


def _mark(text: str) -> Path:
    return cache_folder("configurations", hashlib.sha256(text.encode()).hexdigest())


def remember_as_own(text: str) -> None:
    """Remember a configuration that this installation wrote."""
    try:
        mark = _mark(text)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        pass  # it will have to be named with --config


def is_own(path: Path) -> bool:
    """Whether this installation wrote the file, or one with the same content."""
    try:
        return _mark(path.read_text(encoding="utf-8")).is_file()
    except (OSError, UnicodeDecodeError):
        return False
