"""One paragraph from a long parsing error: what is wrong, where, and the nearest right name."""

import dataclasses
import difflib
import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from cli.parameters import dataclass_of, imported, nested_names, parameters
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_posttrain import SIBLINGS
from support.errors import ConfigError
from support.files import INSTALLED

_OPTION = re.compile(r"(?:Option|Key|key) ['\"]([\w.+@-]+)['\"] is not (?:accepted|expected)")
_GROUP = re.compile(r"Group ['\"]([\w.]+)['\"] does not accept option ['\"]([\w.]+)['\"]")
_UNKNOWN_ARGUMENT = re.compile(r"[Uu]nrecognized arguments?:\s*(--[\w.+-]+)")
_UNKNOWN_KEY = re.compile(r"(?:No such option|Unrecognized key|not expected|Invalid key)[^'\"]*['\"]([\w.]+)['\"]")
_VALUE = re.compile(
    r"Parser key ['\"]([\w.]+)['\"]:\s+Expected a <class ['\"](\w+)['\"]>"
    r"(?:\. Got value: ([^\n]*)|[^\n]*\n\s*Given value: ([^\n]*))"
)
_SUBCLASS = re.compile(r"Not a valid subclass of (\w+)\. Got value: ([^\n]*)")
_CHOICE = re.compile(r"Parser key ['\"]([\w.]+)['\"]:\s+Expected a typing\.Literal\[([^\]]*)\]\. Got value: ([^\n]*)")
_MISFIT = re.compile(r"Subtypes: \[<class '(\w+)'>[^\n]*\n(?:(?!Subtypes:).)*?Given value: ([\w.+-]+)", re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path ['\"]([\w.]+)['\"]")
_CALLABLE = re.compile(r"[^\n]*Got value: Namespace\(class_path=['\"]([\w.]+)['\"]")
_PARSER_KEY = re.compile(r"Parser key ['\"]([\w.]+)['\"]")
_IMPORT = re.compile(
    r"(?:Unable to import|No module named|has no attribute|cannot import name|Import path|not (?:a valid )?import path"
    r"|does not correspond to)[^\n]*"
)
_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
#: names of settings in other projects -> keys of this one
_ELSEWHERE = {
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
    "beta": "model.kl.coefficient",
    "num_generations": "model.batch.group_size",
    "batch_size": "model.batch.prompts_per_rollout",
    "train_batch_size": "model.batch.prompts_per_rollout",
    "per_device_train_batch_size": "model.batch.prompts_per_rollout",
    "gradient_accumulation_steps": "model.batch.update_token_budget",
    "num_iterations": "model.batch.updates_per_rollout",
    "max_completion_length": "model.sampling.max_new_tokens",
    "max_new_tokens": "model.sampling.max_new_tokens",
    "temperature": "model.sampling.temperature",
    "num_train_epochs": "trainer.max_steps",
    "seed": "seed_everything",
    "output_dir": "trainer.default_root_dir",
    "model_name_or_path": "model.policy.model",
}
_LIST_ALL = "List every setting by adding --print_config to the command."


@dataclasses.dataclass
class ParsingError:
    """A message of the parser, taken apart.

    Fields:
        message: the whole of it. known: dotted names that the parser accepts.
        keys: names of the values that it was parsing, outermost first.
    """

    message: str
    known: list[str]
    keys: list[str]

    @property
    def place(self) -> str:
        return ".".join(self.keys) or "the configuration"

    def key(self, last: str) -> str:
        """The dotted name of a value whose parser calls it by `last`, the innermost of the keys."""
        return ".".join([*self.keys[:-1], last])

    def class_around(self, match: re.Match[str]) -> str | None:
        """The innermost class whose arguments were parsed: that of an optimiser or scheduler follows the match."""
        following = _CALLABLE.match(self.message[match.end() :])
        classes = [following[1]] if following else _CLASS.findall(self.message[: match.start()])
        return classes[-1] if classes else None


def explain(message: str, known: Iterable[str]) -> str:
    """Say what is wrong, where, and what to change; "" if nothing can be said beyond the message.

    Args:
        message: the parser's error.
        known: full dotted names that the parser accepts.
    """
    error = ParsingError(message, list(known), list(dict.fromkeys(_PARSER_KEY.findall(message))))
    return next((paragraph for explanation in EXPLANATIONS if (paragraph := explanation(error))), "")


def unknown_option(error: ParsingError) -> str:
    """An option of the command line that nothing accepts."""
    match = _UNKNOWN_ARGUMENT.search(error.message)
    if match is None:
        return ""
    option = match[1].lstrip("-")
    owner = error.class_around(match)
    if owner is not None:
        if error.keys == ["model"] and (paragraph := fixed_part(owner, option)):
            return paragraph
        option = f"{'.'.join(error.keys)}.{option}"
        names = [f"{'.'.join(error.keys)}.{name}" for name in nested_names(owner)]
    else:
        names = [*error.known, *(f"model.{name}" for name in nested_names("lightning_modules.GRPO"))]
    last = option.rpartition(".")[2]
    same_last = [name for name in names if name.rpartition(".")[2] == last]
    meant = _ELSEWHERE.get(last) or (same_last[0] if same_last else _nearest(option, names, 0.6))
    hint = f"Did you mean --{meant}?" if meant else _LIST_ALL
    return f"unknown option --{option} on the command line. {hint}"


def unknown_key(error: ParsingError) -> str:
    """A key of a configuration that nothing accepts."""
    if match := _GROUP.search(error.message):
        key, place, names = match[2], ".".join([*error.keys, match[1]]), _group_names(error, match)
    elif match := _OPTION.search(error.message) or _UNKNOWN_KEY.search(error.message):
        key, place = match[1], error.place
        owner = error.class_around(match)
        if owner is not None:
            if error.keys == ["model"] and (paragraph := fixed_part(owner, key)):
                return paragraph
            inner = _inner_class(owner, error.keys)
            names, place = nested_names(inner), f"{place} ({inner})"
            names = [name for name in names if "." not in name]
        else:
            parent = key.rpartition(".")[0]
            names = [name for name in error.known if name.rpartition(".")[0] == parent] or error.known
    else:
        return ""
    if (meant := _ELSEWHERE.get(key.rpartition(".")[2])) is not None:
        return f"unknown key {key!r} in {place}. Did you mean {meant}?"
    meant = _nearest(key, names, 0.5) or _nearest(
        key.rpartition(".")[2], [name.rpartition(".")[2] for name in names], 0.5
    )
    if meant:
        return f"unknown key {key!r} in {place}. Did you mean {meant!r}?"
    hint = f"Accepted keys: {', '.join(sorted(names)[:30])}." if 0 < len(names) < 60 else _LIST_ALL
    return f"unknown key {key!r} in {place}. {hint}"


def fixed_part(owner: str, key: str) -> str:
    """A setting of a part that other on-policy methods take and this one sets itself; "" if `key` is no such setting.

    Args:
        owner: class path of the method. key: dotted name below `model`.
    """
    part = key.removeprefix("model.").partition(".")[0]
    try:
        method, accepted = imported(owner), parameters(owner)
        settable = {*parameters(OnPolicyModule), *parameters("lightning_modules.GRPO")}
    except (ConfigError, TypeError, ValueError):
        return ""
    if (
        not (isinstance(method, type) and issubclass(method, OnPolicyModule))
        or part in accepted
        or part not in settable
    ):
        return ""
    last = key.rpartition(".")[2]
    if last in accepted:
        hint = f"Set model.{last} instead."
    else:
        hint = f"It accepts {', '.join(sorted(accepted))}; explain them with: python main.py fit --model.help {owner}"
    return f"{owner} sets its {part} itself, so model.{key.removeprefix('model.')} cannot be set. {hint}"


def wrong_class(error: ParsingError) -> str:
    """A value that is not of the class that is needed."""
    match = _SUBCLASS.search(error.message)
    if match is None:
        return ""
    return (
        f"{error.place} contains {match[2].strip()!r}, which is not a {match[1]}. Give a class path such as "
        "rewards.ExactAnswer, or with settings: {class_path: rewards.ExactAnswer, init_args: {weight: 2}}"
    )


def wrong_choice(error: ParsingError) -> str:
    """A value that is not among those allowed."""
    match = _CHOICE.search(error.message)
    if match is None:
        return ""
    key = error.key(match[1])
    return f"{key} is {match[3].strip()!r}; it must be one of {match[2]}. Change {key}."


def wrong_type(error: ParsingError) -> str:
    """A value of another type than its key has."""
    if match := _VALUE.search(error.message):
        value, key, expected = match[3] if match[3] is not None else match[4], error.key(match[1]), match[2]
    elif (match := _MISFIT.search(error.message)) and not _IMPORT.search(error.message) and error.keys:
        value, key, expected = match[2].rstrip("."), error.place, match[1]
    else:
        return ""
    return f"{key} is {value.strip()!r}; it must be {_TYPES.get(expected, f'a {expected}')}. Change {key}."


def missing_class(error: ParsingError) -> str:
    """A class path that leads nowhere."""
    for path in dict.fromkeys(re.findall(r"['\"]?((?:[A-Za-z_]\w*\.)+[A-Z]\w*)['\"]?", error.message)):
        module, _, name = path.rpartition(".")
        try:
            members = dir(importlib.import_module(module))
        except ImportError:
            if _IMPORT.search(error.message):
                return (
                    f"the class path {path!r} in {error.place} cannot be imported: there is no module {module!r}. "
                    "Correct class_path."
                )
            continue
        if name not in members:
            near = _nearest(name, [member for member in members if member[:1].isupper()], 0.4)
            hint = f"Did you mean {module}.{near}?" if near else "Correct class_path."
            if (same_name := _same_name_here(module)) is not None:
                hint = f"Your own {same_name} has the name of a package of this project: rename it."
            return f"the class path {path!r} in {error.place} does not exist: {module} has no {name}. {hint}"
    return ""


#: in the order in which they are tried
EXPLANATIONS: tuple[Callable[[ParsingError], str], ...] = (
    unknown_option, wrong_class, wrong_choice, wrong_type, unknown_key, missing_class
)  # fmt: skip


def _nearest(word: str, names: list[str], cutoff: float) -> str | None:
    near = difflib.get_close_matches(word, names, n=1, cutoff=cutoff)
    return near[0] if near else None


def _same_name_here(module: str) -> Path | None:
    """A folder or file of the user in the working directory that has the name of one of this project's packages."""
    name = module.partition(".")[0]
    for path in (Path.cwd() / name, Path.cwd() / f"{name}.py"):
        if name in SIBLINGS and path.exists() and not path.is_relative_to(INSTALLED):
            return path
    return None


def _group_names(error: ParsingError, match: re.Match[str]) -> list[str]:
    """The keys of a group of settings, such as the fields of a part."""
    names = [name.rpartition(".")[2] for name in error.known if name.rpartition(".")[0].endswith(match[1])]
    owner = error.class_around(match)
    return names or ([] if owner is None else _fields(owner, match[1]))


def _fields(owner: str, argument: str) -> list[str]:
    """Fields of the dataclass that an argument of a class takes."""
    return [name.partition(".")[2] for name in nested_names(owner) if name.startswith(f"{argument}.")]


def _inner_class(owner: str, keys: list[str]) -> str:
    """The part whose keys are meant: a dataclass below `owner`, or `owner` itself."""
    try:
        part = dataclass_of(parameters(owner)[keys[-1]].annotation) if keys else None
    except (ConfigError, KeyError, TypeError, ValueError):
        part = None
    return owner if part is None else f"{part.__module__}.{part.__qualname__}"
