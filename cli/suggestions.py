"""From a long parsing error to the one paragraph that a person needs."""

import dataclasses
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable

_OPTION = re.compile(r"(?:Option|Key|key) ['\"]([\w.+@-]+)['\"] is not (?:accepted|expected)")
_GROUP = re.compile(r"Group ['\"]([\w.]+)['\"] does not accept option ['\"]([\w.]+)['\"]")
_UNKNOWN_ARGUMENT = re.compile(r"[Uu]nrecognized arguments?:\s*(--[\w.+-]+)")
_UNKNOWN_KEY = re.compile(r"(?:No such option|Unrecognized key|not expected|Invalid key)[^'\"]*['\"]([\w.]+)['\"]")
_VALUE = re.compile(
    r"Parser key ['\"]([\w.]+)['\"]:\s+Expected a <class ['\"](\w+)['\"]>(?:\. Got value: ([^\n]*)|[^\n]*\n\s*Given value: ([^\n]*))"
)
_SUBCLASS = re.compile(r"Not a valid subclass of (\w+)\. Got value: ([^\n]*)")
_CHOICE = re.compile(r"Parser key ['\"]([\w.]+)['\"]:\s+Expected a typing\.Literal\[([^\]]*)\]\. Got value: ([^\n]*)")
_UNFIT = re.compile(r"Subtypes: \[<class '(\w+)'>[^\n]*\n(?:(?!Subtypes:).)*?Given value: ([\w.+-]+)", re.DOTALL)
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
_CLASS = re.compile(r"Problem with given class_path ['\"]([\w.]+)['\"]")
_PARSER_KEY = re.compile(r"Parser key ['\"]([\w.]+)['\"]")
_IMPORT = re.compile(
    r"(?:Unable to import|No module named|has no attribute|cannot import name|Import path|not (?:a valid )?import path|does not correspond to)[^\n]*"
)


#: what other projects call a setting -> its name here
_ELSEWHERE = {
    "lr": "model.optimizer.init_args.lr",
    "learning_rate": "model.optimizer.init_args.lr",
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


def explain(message: str, known: Iterable[str]) -> str:
    """What is wrong, where, and the nearest right name; "" if nothing can be said beyond the message.

    Args:
        message: the parser's error.
        known: full dotted names that the parser accepts.
    """
    keys = list(dict.fromkeys(_PARSER_KEY.findall(message)))
    where = ".".join(keys)
    if match := _UNKNOWN_ARGUMENT.search(message):
        wrong = match[1].lstrip("-").split("=")[0]
        if classes := _CLASS.findall(message[: match.start()]):
            wrong, names = f"{where}.{wrong}", [f"{where}.{name}" for name in _nested(classes[-1])]
        else:
            names = [*known, *(f"model.{name}" for name in _nested("lightning_modules.GRPO"))]
            same = [name for name in names if name.rpartition(".")[2] == wrong]
            names = same or names
        elsewhere = _ELSEWHERE.get(wrong.rpartition(".")[2])
        near = (
            [elsewhere]
            if elsewhere
            else same[:1]
            if not classes and same
            else difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
        )
        hint = (
            f"Did you mean --{near[0]}?"
            if near
            else "`--print_config` behind the same command shows all that can be set."
        )
        return f"unknown option --{wrong} on the command line. {hint}"
    if match := _SUBCLASS.search(message):
        return (
            f"{where or 'the configuration'} has {match[2].strip()!r}, which is no {match[1]}; give a class path such as rewards.ExactAnswer, or "
            "{class_path: ..., init_args: {...}}."
        )
    if match := _CHOICE.search(message):
        return f"{'.'.join([*keys[:-1], match[1]])} is {match[3].strip()!r}; one of {match[2]} is expected."
    if match := _VALUE.search(message):
        given = match[3] if match[3] is not None else match[4]
        return f"{'.'.join([*keys[:-1], match[1]]) if keys else match[1]} is {given.strip()!r}; {_KINDS.get(match[2], f'a {match[2]}')} is expected."
    if (match := _UNFIT.search(message)) and not _IMPORT.search(message) and keys:
        return f"{where} is {match[2].rstrip('.')!r}, which does not fit; {match[1]} is expected."
    if match := _GROUP.search(message):
        where, wrong = f"{where}.{match[1]}".lstrip("."), match[2]
        names = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0].endswith(match[1])]
        if not names and (classes := _CLASS.findall(message[: match.start()])):
            names = _fields(classes[-1], match[1])
    elif match := _OPTION.search(message) or _UNKNOWN_KEY.search(message):
        wrong = match[1]
        classes = [name for name in _CLASS.findall(message[: match.start()])]
        names = _parameters(classes[-1]) if classes else []
        if not names:
            parent = wrong.rpartition(".")[0]
            names = [name for name in known if name.rpartition(".")[0] == parent] or list(known)
        if classes:
            where = f"{where or 'the configuration'} ({classes[-1]})"
    else:
        return _explain_class(message, where)
    if (elsewhere := _ELSEWHERE.get(wrong.rpartition(".")[2])) is not None:
        return f"unknown key {wrong!r} in {where or 'the configuration'}. Did you mean {elsewhere}?"
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        wrong.rpartition(".")[2], [n.rpartition(".")[2] for n in names], n=1, cutoff=0.5
    )
    hint = (
        f" Did you mean {near[0]!r}?"
        if near
        else (f" Accepted here: {', '.join(sorted(names)[:30])}." if len(names) < 60 else "")
    )
    return f"unknown key {wrong!r} in {where or 'the configuration'}.{hint}"


def _nested(class_path: str) -> list[str]:
    """Dotted names below a class: its parameters, and the fields of those that are dataclasses."""
    own = _parameters(class_path)
    return [*own, *(f"{name}.{field}" for name in own for field in _fields(class_path, name))]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return [
            p
            for p in inspect.signature(getattr(importlib.import_module(module), name)).parameters
            if p not in ("args", "kwargs")
        ]
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def _fields(class_path: str, argument: str) -> list[str]:
    """Fields of the dataclass that an argument of a class takes."""
    module, _, name = class_path.rpartition(".")
    try:
        found = typing.get_type_hints(getattr(importlib.import_module(module), name).__init__)[argument]
        kinds = [kind for kind in (found, *typing.get_args(found)) if dataclasses.is_dataclass(kind)]
        return [field.name for kind in kinds for field in dataclasses.fields(kind)]
    except (ImportError, AttributeError, KeyError, TypeError, NameError):
        return []


def _explain_class(message: str, where: str) -> str:
    """A class path that leads nowhere."""
    for path in dict.fromkeys(re.findall(r"['\"]?((?:[A-Za-z_]\w*\.)+[A-Z]\w*)['\"]?", message)):
        module, _, name = path.rpartition(".")
        try:
            found = importlib.import_module(module)
        except ImportError:
            if _IMPORT.search(message):
                return f"the class path {path!r} in {where or 'the configuration'} cannot be imported: there is no module {module!r}."
            continue
        if not hasattr(found, name):
            near = difflib.get_close_matches(name, [n for n in dir(found) if n[:1].isupper()], n=1, cutoff=0.4)
            hint = f" Did you mean {module}.{near[0]}?" if near else ""
            return f"the class path {path!r} in {where or 'the configuration'} does not exist: {module} has no {name}.{hint}"
    return ""
