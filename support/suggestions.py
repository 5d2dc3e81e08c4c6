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
_CLASS = re.compile(r"Problem with given class_path ['\"]([\w.]+)['\"]")
_PARSER_KEY = re.compile(r"Parser key ['\"]([\w.]+)['\"]")
_IMPORT = re.compile(
    r"(?:Unable to import|No module named|has no attribute|cannot import name|Import path|not (?:a valid )?import path|does not correspond to)[^\n]*"
)


def explain(message: str, known: Iterable[str]) -> str:
    """What is wrong, where, and the nearest right name; "" if nothing can be said beyond the message.

    Args:
        message: the parser's error.
        known: full dotted names that the parser accepts.
    """
    if match := re.search(r"File does not exist: '?([^'\n]+)'?", message):
        return f"the file {match[1]} does not exist; check the path after --config."
    where = ".".join(dict.fromkeys(_PARSER_KEY.findall(message)))
    if match := _UNKNOWN_ARGUMENT.search(message):
        wrong, names, where = match[1].lstrip("-").split("=")[0], list(known), "the command line"
    elif match := _GROUP.search(message):
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
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5) or difflib.get_close_matches(
        wrong.rpartition(".")[2], [n.rpartition(".")[2] for n in names], n=1, cutoff=0.5
    )
    hint = f" Did you mean {near[0]!r}?" if near else (f" Accepted here: {', '.join(sorted(names)[:30])}." if len(names) < 60 else "")
    return f"unknown key {wrong!r} in {where or 'the configuration'}.{hint}"


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return [p for p in inspect.signature(getattr(importlib.import_module(module), name)).parameters if p not in ("args", "kwargs")]
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
