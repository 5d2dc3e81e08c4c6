"""Identity of an object by all of its settings, as plain data that can be fingerprinted."""

import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch


def identity(value: Any) -> Any:
    """Plain data that is equal for two objects if and only if their classes and all of their settings are.

    Nested objects, containers and tensors count with their contents, functions with their source.

    Args:
        value: a setting, or an object whose attributes are its settings.
    """
    return _identity(value, ())


def _identity(value: Any, outer: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in outer:  # an object that refers to itself
        return ["inside itself", len(outer) - outer.index(id(value))]
    outer = (*outer, id(value))
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, (bytes, Path)):
        return [name, hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)]
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return [name, str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, Mapping):
        items = [[_identity(key, outer), _identity(item, outer)] for key, item in value.items()]
        return [name, sorted(items, key=repr)]
    if isinstance(value, Set):
        return [name, sorted((_identity(item, outer) for item in value), key=repr)]
    if isinstance(value, Sequence):
        return [name, [_identity(item, outer) for item in value]]
    if isinstance(value, functools.partial):
        return [name, *(_identity(part, outer) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, type) or inspect.isroutine(value):
        return [f"{value.__module__}.{value.__qualname__}", _source(value)]
    return [name, _source(type(value)), _identity(_attributes(value), outer)]


def _source(value: Any) -> str:
    """The fingerprint of the source of a class or function; "" for one without source."""
    try:
        return hashlib.sha256(inspect.getsource(value).encode()).hexdigest()
    except (OSError, TypeError):
        return ""


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, torch.nn.Module):
        return dict(value.state_dict())
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    attributes = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return attributes | getattr(value, "__dict__", {})
