"""Texts that begin with # stay texts.

jsonargparse reads the value of an optional text as YAML first. "#### (.+)" is a comment there, so that the option would
silently be null.
"""

from typing import Any

from jsonargparse import _typehints

_read = _typehints.parse_value_or_config
NULL = ("null", "~")


def read(value: Any, *arguments: Any, **settings: Any) -> Any:
    """(value, path) as jsonargparse reads them, but nothing except null and ~ becomes None."""
    loaded, path = _read(value, *arguments, **settings)
    before, after = (getattr(each, "val", each) for each in (value, loaded))
    if after is None and isinstance(before, str) and before.strip().lower() not in NULL:
        return value, path
    return loaded, path


def register() -> None:
    """Make all parsers read texts so."""
    _typehints.parse_value_or_config = read
