"""The objects that others hold, however deep: in attributes, containers, partial functions, closures and globals."""

import functools
import inspect
import types
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch

from support.code_identity import in_project, is_library, used_globals
from support.identity import attributes_of

_PLAIN = (str, bytes, int, float, complex, bool, types.NoneType, types.ModuleType, types.CodeType, torch.Tensor)


def reachable(value: Any, ends: tuple[type, ...] = ()) -> Iterator[Any]:
    """Every object that `value` holds, once each, without `value` itself.

    Code of libraries and of this project holds nothing, and their networks only their parts.

    Args:
        ends: types of objects that are given out without what they hold.
    """
    met, todo = {id(value): value}, deque(_held(value))
    while todo:
        item = todo.popleft()
        if isinstance(item, _PLAIN) or id(item) in met:
            continue
        met[id(item)] = item  # kept alive, so that no other object gets its id
        yield item
        if not isinstance(item, ends):
            todo += _held(item)


def _held(value: Any) -> list[Any]:
    """The objects that an object holds directly."""
    place = value if isinstance(value, (type, types.FunctionType)) else type(value)
    foreign = is_library(place.__module__)
    if isinstance(value, (type, types.FunctionType)) and (foreign or in_project(place.__module__)):
        return []
    if isinstance(value, torch.nn.Module):
        settings = [part for name, part in sorted(vars(value).items()) if name not in ("_parameters", "_buffers")]
        held = list(value.children()) if foreign else settings
    elif isinstance(value, functools.partial):
        held = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        held = [*cells, *defaults, *vars(value).values(), *used_globals(value).values()]
    elif isinstance(value, type):
        held = [*value.__bases__, *vars(value).values()]
    else:
        held = [part for _, part in attributes_of(value) or []]
        if inspect.isroutine(value):  # a method, or a cached function
            held += [getattr(value, part, None) for part in ("__func__", "__self__", "__wrapped__")]
        held.append(type(value))
    if isinstance(value, Mapping):
        held += [*value.keys(), *value.values()]
    elif isinstance(value, (Set, Sequence)) and not isinstance(value, (str, bytes, range)):
        held += list(value)
    return held
