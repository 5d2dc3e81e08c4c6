"""Defaults of a class as its constructor's signature states them, read without the command line's parser."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from typing import Any

import torch

#: stands for a parameter without a default
REQUIRED = inspect.Parameter.empty


def _passed_to_base(owner: type) -> set[str]:
    """Names of the parameters that a constructor itself gives to the constructor of its base."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner.__init__)))  # type: ignore[misc]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    to_base = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    return {str(keyword.arg) for call in to_base for keyword in call.keywords if keyword.arg}


def constructor_parameters(owner: type) -> dict[str, inspect.Parameter]:
    """Parameters by name: those of the constructor, and those of the bases that its **kwargs reaches."""
    parameters: dict[str, inspect.Parameter] = {}
    hidden: set[str] = set()
    for base in owner.__mro__:
        if "__init__" not in vars(base):
            continue
        signature = inspect.signature(base.__init__, eval_str=True)  # type: ignore[misc]
        several = list(signature.parameters.values())[1:]
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        for parameter in several:
            if parameter.kind not in kinds and parameter.name not in hidden:
                parameters.setdefault(parameter.name, parameter)
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in several):
            break
        hidden |= _passed_to_base(base) - set(parameters)
    return parameters


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation, the annotation itself."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in UNIONS else (annotation,)


UNIONS = (typing.Union, types.UnionType)


def dataclass_in(annotation: Any) -> type | None:
    """The dataclass that a parameter of this type takes, if it takes one."""
    classes = [one for one in members(annotation) if inspect.isclass(one) and dataclasses.is_dataclass(one)]
    return classes[0] if classes else None


def is_optimizer(value: Any) -> bool:
    """Whether a default is a function of parameters that gives their optimizer."""
    return inspect.isfunction(value) and len(inspect.signature(value).parameters) == 1


def optimizer_of(default: Any) -> torch.optim.Optimizer:
    """The optimizer that a default of this kind gives to one parameter."""
    optimizer = default([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def options(value: Any) -> dict[str, Any]:
    """The constructor's options of a default instance, by name."""
    if is_optimizer(value):
        return dict(optimizer_of(value).defaults)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    return {name: getattr(value, name) for name in constructor_parameters(type(value))}


def field_defaults(owner: type) -> dict[str, Any]:
    """Defaults of a dataclass's fields; REQUIRED for those without."""
    values = {}
    for field in dataclasses.fields(owner):
        default = field.default if field.default is not dataclasses.MISSING else REQUIRED
        values[field.name] = default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return values


def default_at(owner: type, path: str) -> Any:
    """The default of a dotted option of a class, e.g. "batch.group_size" or "optimizer.lr".

    None if a part on the way is None by default, REQUIRED if the option has no default.
    """
    name, *rest = path.split(".")
    parameter = constructor_parameters(owner)[name]
    value = parameter.default
    if value is REQUIRED and rest:
        part = dataclass_in(parameter.annotation)
        assert part is not None, f"{name} of {owner.__name__} has no default"
        value = field_defaults(part)[rest.pop(0)]
    for step in rest:
        if value is None:
            return None
        value = options(value)[step]
    return value
