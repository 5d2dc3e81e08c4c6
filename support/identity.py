"""Identity of an object by all of its settings, as plain data that can be fingerprinted.

Caches and the ledger of safety tests rest on it, so it must never be equal for two things that act differently.
Whatever cannot be read (a lock, a socket, a C object without a pickle form) therefore gets a random identity, equal to
nothing.
"""

import copyreg
import functools
import hashlib
import inspect
import secrets
import sys
import sysconfig
import types
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from support.files import INSTALLED, fingerprint

_LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
#: this project's packages; a class or function in them is identified by its file
_PROJECT = set(
    "callbacks cli datamodules lightning_modules objectives policies rewards rollouts support tracking".split()
)
_CONTAINERS = (dict, list, tuple, set, frozenset, types.MappingProxyType)


def identity(value: Any) -> Any:
    """Plain data that is equal for two objects only if their classes, their settings and their code are.

    Nested objects, containers and tensors count with their contents. Functions count with their bytecode, defaults,
    closures and the globals that they use; classes of this project with the file that defines them; libraries with
    their version.

    Args:
        value: a setting, or an object whose attributes are its settings.
    """
    return _identity(value, (), {})


def identity_fingerprint(*values: Any) -> str:
    """SHA-256 over the identities of the values."""
    return fingerprint([identity(value) for value in values])


def _identity(value: Any, outer: tuple[int, ...], code: dict[int, int]) -> Any:
    """Identity of `value` within the objects `outer`; `code` numbers the functions and classes that were met before."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if id(value) in outer:  # an object that refers to itself
        return ["inside itself", len(outer) - outer.index(id(value))]
    outer = (*outer, id(value))

    def inner(item: Any) -> Any:
        return _identity(item, outer, code)

    if isinstance(value, types.ModuleType):
        return ["module", value.__name__, _version(value)]
    if isinstance(value, type) or isinstance(value, (types.FunctionType, types.CodeType)):
        if id(value) not in code:
            code[id(value)] = len(code)
            return _class(value, inner) if isinstance(value, type) else _function(value, inner)
        return ["code", code[id(value)]]
    name = inner(type(value))
    if isinstance(value, Enum):
        return [name, value.name]
    if isinstance(value, (bytes, Path)):
        return [name, hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)]
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return [name, str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, functools.partial):
        return [name, *map(inner, (value.func, value.args, value.keywords))]
    if inspect.isroutine(value):  # a method, or a function in C
        parts = [inner(getattr(value, part, None)) for part in ("__func__", "__self__", "__wrapped__")]
        module = sys.modules.get(str(getattr(value, "__module__", None)))  # methods of C types have none
        return [name, value.__qualname__, _version(module), *parts]
    if hasattr(value, "backend_tokenizer") and hasattr(value, "chat_template"):
        return [name, tokenizer_identity(value)]
    if isinstance(value, torch.nn.Module):
        return [name, *map(inner, _module_parts(value))]
    attributes = None if type(value) in _CONTAINERS else _attributes(value)
    extra = [] if attributes is None else [inner(attributes)]
    if isinstance(value, Mapping):
        return [name, sorted(([inner(key), inner(item)] for key, item in value.items()), key=repr), *extra]
    if isinstance(value, Set):
        return [name, sorted((inner(item) for item in value), key=repr), *extra]
    if isinstance(value, Sequence):
        return [name, [inner(item) for item in value], *extra]
    return [name, *(extra or [_reduced(value, inner)])]


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """The rules, chat template and special tokens of a tokenizer, which decide its tokens and texts, as plain data."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else identity(vars(tokenizer))
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    return {"rules": fingerprint([rules]), "chat_template": tokenizer.chat_template, "special_tokens": special}


def _class(kind: type, inner: Any) -> Any:
    """A class by the files that define it and its bases, or, outside this project, by its members."""
    parts: list[Any] = [f"{kind.__module__}.{kind.__qualname__}"]
    for base in kind.__mro__[:-1]:
        if (file := _project_file(base.__module__)) is not None:
            parts.append(file)
        elif not _is_library(base.__module__):
            members = {n: m for n, m in vars(base).items() if n != "_abc_impl" and (n[:2] != "__" or callable(m))}
            parts.append([base.__qualname__, inner({n: _member(m) for n, m in members.items()})])
        else:
            parts.append([base.__qualname__, _version(sys.modules.get(base.__module__))])
    return parts


def _member(member: Any) -> Any:
    """The functions of a class's member: of a property its getter and setter, of a class method the function."""
    if isinstance(member, property):
        return [member.fget, member.fset]
    if isinstance(member, functools.cached_property):
        return [member.func]
    if isinstance(member, (types.GetSetDescriptorType, types.MemberDescriptorType)):
        return "attribute"
    return getattr(member, "__func__", member)


def _function(function: Any, inner: Any) -> Any:
    """A function by its bytecode and everything it reaches: defaults, closure, globals; a library's by its name."""
    if isinstance(function, types.CodeType):
        constants = [inner(constant) for constant in function.co_consts]
        names = [function.co_names, function.co_varnames, function.co_freevars, function.co_flags]
        return [function.co_code.hex(), constants, names]
    place = f"{function.__module__}.{function.__qualname__}"
    closure = [_cell(cell, inner) for cell in function.__closure__ or ()]
    settings = [inner(function.__defaults__), inner(function.__kwdefaults__), closure]
    if _is_library(function.__module__):
        return [place, _version(sys.modules.get(function.__module__)), *settings]
    if (file := _project_file(function.__module__)) is not None:
        return [place, file, inner(function.__code__), *settings]
    used = {n: inner(function.__globals__[n]) for n in sorted(_names(function.__code__)) if n in function.__globals__}
    return [place, inner(function.__code__), *settings, used]


def _cell(cell: Any, inner: Any) -> Any:
    try:
        return inner(cell.cell_contents)
    except ValueError:  # not yet assigned
        return "empty"


def _names(code: types.CodeType) -> set[str]:
    """Global names in a function's code and in the functions inside it."""
    nested = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return {*code.co_names}.union(*nested)


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file and Path(file).is_file() else None


def _project_file(module: str) -> str | None:
    """The hash of a module's file if it belongs to this project's packages."""
    file = _file(module) if module.partition(".")[0] in _PROJECT else None
    return _file_hash(file, file.stat().st_mtime_ns) if file is not None and file.is_relative_to(INSTALLED) else None


@functools.cache
def _file_hash(file: Path, modified: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _is_library(module: str) -> bool:
    """Whether a module belongs to Python or an installed library, whose version stands for its code."""
    file = _file(module)
    if file is None:
        return module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}
    return any(file.is_relative_to(folder) for folder in _LIBRARIES) and not file.is_relative_to(INSTALLED)


def _version(module: types.ModuleType | None) -> str:
    """The version of a library; of other modules the hash of their file."""
    if module is None:
        return ""
    if _is_library(module.__name__):
        package = sys.modules.get(module.__name__.partition(".")[0])
        return str(getattr(package, "__version__", sys.version.partition(" ")[0]))
    file = _file(module.__name__)
    return "" if file is None else _file_hash(file, file.stat().st_mtime_ns)


def _module_parts(module: torch.nn.Module) -> tuple[Any, ...]:
    """Weights, and the classes and settings of all parts of a network."""
    parts = {}
    for name, part in module.named_modules():
        settings = {n: v for n, v in vars(part).items() if not n.startswith("_") and n != "training"}
        parts[name] = [type(part), settings]
    return dict(module.state_dict()), parts


def _attributes(value: Any) -> dict[str, Any] | None:
    """Attributes of an object; None for an object without a place for any."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    if not slots and not hasattr(value, "__dict__"):
        return None
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _reduced(value: Any, inner: Any) -> Any:
    """The pickle form of an object without attributes, or a random number if it has none."""
    try:
        registered = copyreg.dispatch_table.get(type(value))
        form = value.__reduce_ex__(4) if registered is None else registered(value)
    except Exception:  # objects refuse in many ways
        return ["cannot be identified", secrets.token_hex(16)]
    return (
        form
        if isinstance(form, str)
        else [inner(list(part) if n > 2 and part else part) for n, part in enumerate(form)]
    )
