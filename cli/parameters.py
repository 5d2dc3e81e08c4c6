"""Parameters of a class, as its command line has them: its own, and those that its `**kwargs` pass on to its bases."""

import dataclasses
import importlib
import inspect
import types
import typing
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters

from support.errors import ConfigError


def imported(path: str) -> Any:
    """The object at a dotted path.

    Raises:
        ConfigError: if it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"the class path {path!r} cannot be imported: {error}. Check the spelling of class_path."
        ) from error


def parameters(owner: Any) -> dict[str, Any]:
    """Parameters by name, each with `annotation` and `default`.

    A parameter that a subclass sets itself when it calls its base is left out.

    Args:
        owner: a class, a function, or the dotted path of one.
    """
    if isinstance(owner, str):
        owner = imported(owner)
    is_class = inspect.isclass(owner)
    return {one.name: one for one in get_signature_parameters(owner, "__init__" if is_class else None)}


def default_part(owner: type, name: str) -> Any:
    """The value that a class gives to one of its parts unless told otherwise; None if its signature has no default."""
    parameter = parameters(owner).get(name)
    default = None if parameter is None else parameter.default
    return None if default is inspect.Parameter.empty else default


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation, the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def accepts_none(annotation: Any) -> bool:
    """Whether a parameter of this type may be null in a configuration."""
    return any(one in (None, type(None), Any, inspect.Parameter.empty) for one in alternatives(annotation))


def dataclass_of(annotation: Any) -> type | None:
    """The dataclass that a parameter takes, if it takes one."""
    return next(
        (one for one in alternatives(annotation) if inspect.isclass(one) and dataclasses.is_dataclass(one)), None
    )


def nested_names(owner: Any) -> list[str]:
    """Dotted names of a class's parameters and of the fields of its dataclasses; empty if it cannot be imported."""
    try:
        by_name = parameters(owner)
    except (ConfigError, TypeError, ValueError):
        return []
    parts = {name: dataclass_of(one.annotation) for name, one in by_name.items()}
    fields = [f"{name}.{field.name}" for name, part in parts.items() if part for field in dataclasses.fields(part)]
    return [*by_name, *fields]
