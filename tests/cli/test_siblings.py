"""One option of a part is set on the command line: its other options, and all other parts, stay the method's own.

Methods, parts and options are read from the signatures of the constructors, so a new one is covered by itself.
"""

import dataclasses
import inspect
import typing
from functools import cache
from typing import Any

import lightning as L
import pytest
from jsonargparse import Namespace

import lightning_modules
import rewards
from cli.parser import Parser, make_parser
from lightning_modules.core.posttrain_module import PosttrainModule
from tests.helpers.signatures import (
    REQUIRED,
    constructor_parameters,
    dataclass_in,
    field_defaults,
    is_optimizer,
    members,
    optimizer_of,
    options,
)

METHODS = [
    method
    for method in map(vars(lightning_modules).get, lightning_modules.__all__)
    if inspect.isclass(method) and issubclass(method, L.LightningModule) and not inspect.isabstract(method)
    if method is not lightning_modules.OnPolicyModule
]
PLAIN = (bool, int, float, str)
MODEL = {"model": "assets/tiny_reasoner"}
#: options that name a model and have no default
MODELS = ("model", "aligned")


@cache
def parser() -> Parser:
    """The command line's parser of methods, as the command line adds them."""
    command_line = make_parser(exit_on_error=False)
    command_line.add_lightning_class_args(PosttrainModule, "model", subclass_mode=True)
    return command_line


def without_default(method: type) -> list[str]:
    """The options without a default of a method's parts, all of them names of models."""
    required = [
        (name, part)
        for name, parameter in constructor_parameters(method).items()
        if parameter.default is REQUIRED and (part := dataclass_in(parameter.annotation)) is not None
    ]
    return [
        f"{name}.{option}"
        for name, part in required
        for option, default in field_defaults(part).items()
        if default is REQUIRED
    ]


def parsed(method: type, *arguments: str) -> Namespace:
    """The settings of a method, with what has no default."""
    required = [f"--model=lightning_modules.{method.__name__}"]
    required += [f"--model.{option}={MODEL['model']}" for option in without_default(method)]
    if "rewards" in constructor_parameters(method):
        required.append("--model.rewards=[rewards.ExactAnswer]")
    return parser().parse_args([*required, *arguments]).model.init_args


def expected_parts(method: type) -> dict[str, Any]:
    """The default of every part of a method that has options; of a part that is off by default, its class."""
    parts: dict[str, Any] = {}
    for name, parameter in constructor_parameters(method).items():
        part, default = dataclass_in(parameter.annotation), parameter.default
        if default is REQUIRED or default is None:
            if part is not None:
                parts[name] = part
        elif is_optimizer(default) or not isinstance(default, (*PLAIN, list, tuple)):
            parts[name] = default
    return parts


def part_options(part: Any) -> dict[str, Any]:
    """Options of a part by name, with their defaults."""
    return field_defaults(part) if inspect.isclass(part) else options(part)


def another(annotation: Any, default: Any) -> Any:
    """A valid value that differs from the default; None if none can be told from the type."""
    for one in members(annotation):
        if typing.get_origin(one) is typing.Literal:
            return next(choice for choice in typing.get_args(one) if choice != default)
        if one is bool:
            return not default
        if one is int:
            return 2 * default if default else 3
        if one is float:
            return default / 2 if default else 0.25
        if one is str:
            return f"{default or ''}other"
    return None


def annotations(part: Any) -> dict[str, Any]:
    """Types of a part's options."""
    if is_optimizer(part):
        return {name: type(value) for name, value in options(part).items() if isinstance(value, float)}
    owner = part if inspect.isclass(part) else type(part)
    if dataclasses.is_dataclass(owner):
        return typing.get_type_hints(owner)
    return {name: parameter.annotation for name, parameter in constructor_parameters(owner).items()}


def change(part: Any) -> tuple[str, Any] | None:
    """The first option of a part that can be set by its type, with another value; None if it has no such option."""
    types = annotations(part)
    for name, default in part_options(part).items():
        value = None if name in MODELS else another(types.get(name), None if default is REQUIRED else default)
        if value is not None:
            return name, value
    return None


CASES = [
    pytest.param(method, part, *option, id=f"{method.__name__}-{part}.{option[0]}")
    for method in METHODS
    for part, default in expected_parts(method).items()
    if (option := change(default)) is not None
]


def difference(place: str, value: Any, default: Any) -> list[str]:
    """The place where a parsed value is not the default that the signature states."""
    if is_optimizer(default) or (isinstance(value, Namespace) and "class_path" in value):
        owner = type(optimizer_of(default)) if is_optimizer(default) else type(default)
        if not value.class_path.endswith(f".{owner.__name__}"):
            return [f"{place} is {value.class_path}, not {owner.__name__}"]
        value, names = value.get("init_args", Namespace()), options(default)
        if isinstance(default, rewards.Reward) and value.get("name") is None:
            names["name"] = None  # stands for the class's own name
        return [line for name in value.as_dict() for line in difference(f"{place}.{name}", value[name], names[name])]
    if isinstance(value, Namespace):
        names = part_options(default)
        return [line for name in names for line in difference(f"{place}.{name}", value.get(name), names[name])]
    equal = (
        list(value) == list(default) if isinstance(default, tuple | list) and value is not None else value == default
    )
    return [] if equal else [f"{place} is {value!r}, not {default!r}"]


@pytest.mark.parametrize(("method", "part", "option", "value"), CASES)
def test_setting_one_option_leaves_all_others(method, part, option, value):
    settings = parsed(method, f"--model.{part}.{option}={value}")
    parameters = constructor_parameters(method)
    differences = []
    for name, parameter in parameters.items():
        default = expected_parts(method).get(name, parameter.default)
        off = inspect.isclass(default) and parameter.default is None
        if name == "rewards":
            continue
        if off and name != part:
            default = None
        differences += difference(name, settings.get(name), default)
    accepted = {f"{part}.{option}", *without_default(method)}
    wrong = [line for line in differences if line.split(" is ")[0] not in accepted]
    assert not wrong, "\n".join(wrong)
    assert any(line.startswith(f"{part}.{option} is ") for line in differences), f"{part}.{option} was not set"


def test_every_method_and_its_parts_are_covered():
    covered = {(case.values[0].__name__, case.values[1]) for case in CASES}
    assert {name for name, _ in covered} == {method.__name__ for method in METHODS}
    assert {("ProRL", "kl"), ("HCRLHF", "constraint"), ("HCRLHF", "supervised"), ("SFT", "optimizer")} <= covered
