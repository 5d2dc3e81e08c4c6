"""Identity of an object by all of its settings, as plain data that can be fingerprinted.

Caches and the ledger of safety tests rest on it, so it must never be equal for two things that act differently.
Whatever cannot be read (a lock, a socket, a C object without a pickle form) therefore gets a random identity, equal to
nothing.
"""

import copyreg
import dis
import functools
import hashlib
import importlib.util
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
    "callbacks cli datamodules environments lightning_modules objectives policies rewards rollouts support "
    "tracking".split()
)
_CONTAINERS: tuple[type, ...] = (dict, list, tuple, set, frozenset, types.MappingProxyType)


def identity(value: Any) -> Any:
    """Plain data that is equal for two objects only if their classes, their settings and their code are.

    Nested objects, containers and tensors count with their contents, dicts with their order. Functions count with their
    bytecode, defaults, closures, attributes, and the globals and modules that they use; classes of this project with
    the file that defines them; libraries with their version.

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
        return [name, inner(value.func), inner(value.args), inner(sorted(value.keywords.items())), inner(vars(value))]
    if inspect.isroutine(value) and hasattr(value, "__qualname__"):  # a method, or a function in C
        parts = [inner(getattr(value, part, None)) for part in ("__func__", "__self__", "__wrapped__", "__objclass__")]
        module = sys.modules.get(str(getattr(value, "__module__", None)))
        return [name, value.__qualname__, _version(module), *parts, inner(_attributes(value))]
    if hasattr(value, "backend_tokenizer") and hasattr(value, "chat_template"):
        return [name, tokenizer_identity(value)]
    if isinstance(value, torch.nn.Module):
        return [name, *map(inner, _module_parts(value))]
    kind: Any = type(value)
    complete = kind in _CONTAINERS or isinstance(value, Set)  # its items and attributes are all that it has
    if not complete and kind.__reduce__ is not object.__reduce__ and _is_library(kind.__module__):
        state = [_reduced(value, inner)]  # a library states what makes an equal object: its pickle form
    else:
        attributes = None if kind in _CONTAINERS else _attributes(value)
        state = [] if attributes is None else [inner(attributes)]
        if not complete and (_has_state_in_c(kind) or not state):
            state.append(_reduced(value, inner))
    if isinstance(value, Mapping):
        return [name, [[inner(key), inner(item)] for key, item in value.items()], *state]
    if isinstance(value, Set):
        return [name, sorted((inner(item) for item in value), key=repr), *state]
    if isinstance(value, Sequence):
        return [name, [inner(item) for item in value], *state]
    return [name, *state]


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
            parts.append([base.__qualname__, inner(sorted((n, _member(m)) for n, m in members.items()))])
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
    named = sorted((function.__kwdefaults__ or {}).items())
    settings = [inner(function.__defaults__), inner(named), closure, inner(sorted(vars(function).items()))]
    if _is_library(function.__module__):
        return [place, _version(sys.modules.get(function.__module__)), *settings]
    if (file := _project_file(function.__module__)) is not None:
        return [place, file, inner(function.__code__), *settings]
    used = {name: inner(part) for name, part in sorted(_used(function).items())}
    return [place, inner(function.__code__), *settings, used, _imports(function.__code__, function.__globals__)]


def _cell(cell: Any, inner: Any) -> Any:
    try:
        return inner(cell.cell_contents)
    except ValueError:  # not yet assigned
        return "empty"


def _used(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function uses, and what it uses of the modules among them, by dotted name."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    used: dict[str, Any] = {}
    reached = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
    opened: set[str] = set()
    while reached:
        used |= reached
        modules = {
            place: part
            for place, part in reached.items()
            if isinstance(part, types.ModuleType) and part.__name__ not in opened and not _is_library(part.__name__)
        }
        opened |= {module.__name__ for module in modules.values()}
        reached = {
            f"{place}.{name}": getattr(module, name)
            for place, module in modules.items()
            for name in sorted(names & vars(module).keys())
        }
    return used


def _imports(code: types.CodeType, around: dict[str, Any]) -> list[list[str]]:
    """Names and hashes of the files that a function imports when it runs, libraries left out."""
    files = set()
    for instruction in (step for part in _codes(code) for step in dis.get_instructions(part)):
        if instruction.opname == "IMPORT_NAME":
            for name in (str(instruction.argval), f"{around.get('__package__') or ''}.{instruction.argval}"):
                try:
                    spec = importlib.util.find_spec(name.strip("."))
                except (ImportError, ValueError, AttributeError):
                    continue
                file = Path(spec.origin) if spec is not None and spec.origin is not None else None
                if file is not None and file.is_file() and not _in_library(file.resolve()):
                    files.add((name, _file_hash(file, file.stat().st_mtime_ns)))
    return [list(pair) for pair in sorted(files)]


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """The code of a function and of the functions inside it."""
    nested = [_codes(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return [code, *(inside for codes in nested for inside in codes)]


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


def _is_library(module: str | None) -> bool:
    """Whether a module belongs to Python or an installed library, whose version stands for its code."""
    if module is None or module.partition(".")[0] in _PROJECT:
        return False
    file = _file(module)
    if file is None:
        return module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}
    return _in_library(file)


def _in_library(file: Path) -> bool:
    # The environment may lie inside this project's folder, and this project inside the environment.
    return any(file.is_relative_to(folder) for folder in _LIBRARIES)


def _version(module: types.ModuleType | None) -> str:
    """The version of a library; of other modules, and of libraries that state none, the hash of their file."""
    if module is None:
        return ""
    if _is_library(module.__name__):
        top = module.__name__.partition(".")[0]
        if (version := getattr(sys.modules.get(top), "__version__", None)) is not None:
            return str(version)
        if top in sys.stdlib_module_names:
            return sys.version.partition(" ")[0]
    file = _file(module.__name__)
    return "" if file is None else _file_hash(file, file.stat().st_mtime_ns)


def _module_parts(module: torch.nn.Module) -> tuple[Any, ...]:
    """Weights and buffers, and the classes, settings and hooks of all parts of a network."""
    parts, of_all = {}, vars(torch.nn.Module())
    for name, part in module.named_modules():
        settings = sorted((n, v) for n, v in vars(part).items() if n not in of_all)
        if _is_library(type(part).__module__):  # transformers keeps plans here whose order differs between processes
            settings = [(n, v) for n, v in settings if not n.startswith("_")]
        hooks = [list(getattr(part, f"_forward_{kind}").values()) for kind in ("pre_hooks", "hooks")]
        parts[name] = [type(part), settings, hooks]
    return dict(module.named_buffers()), dict(module.state_dict()), parts


def _attributes(value: Any) -> list[Any] | None:
    """Attributes of an object, sorted by name; None for an object without a place for any."""
    slots = copyreg._slotnames(type(value))  # type: ignore[attr-defined]  # mangled, as pickle reads them
    if not slots and not hasattr(value, "__dict__"):
        return None
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    if type(value).__module__.startswith("transformers."):  # its configurations hold a hash of this process
        held = {name: item for name, item in held.items() if not name.startswith("_")}
    return sorted(held.items(), key=lambda pair: str(pair[0]))


def _has_state_in_c(kind: type) -> bool:
    """Whether a class derives from one that is written in C, which can hold more than attributes."""
    return next(base for base in kind.__mro__ if getattr(base.__new__, "__self__", None) is base) is not object


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
