"""Identity of an object by all of its settings, as plain data that can be fingerprinted.

Caches and the ledger of safety tests rest on it, so it must never be equal for two things that act differently. What
cannot be read (a lock, a socket, a C object without a pickle form) therefore gets a random identity.
"""

import copyreg
import functools
import hashlib
import inspect
import secrets
import sys
import types
import weakref
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from support.code_identity import code_behind, in_project, is_library, lazy_imports, used_globals, version_of
from support.files import file_hash, fingerprint, names_a_file, path_hashes

_SINGLE_DISPATCH = functools.singledispatch(len).__code__  # type: ignore[attr-defined]
_DISPATCH = {"registry", "dispatch", "register", "_clear_cache"}
_CONTAINERS: tuple[type, ...] = (dict, list, tuple, set, frozenset, types.MappingProxyType)


def identity(value: Any) -> Any:
    """Plain data that is equal for two objects only if their classes, their settings and their code are.

    Nested objects, containers and tensors count with their contents, dicts with their order. Functions count with their
    bytecode, defaults, closures, attributes, and the globals and modules that they use; classes of this project with
    their package and all that it imports; libraries with their version (support/code_identity.py). A text or a path
    that names a file counts with the file's content, a path of a folder with all files in it.

    Args:
        value: a setting, or an object whose attributes are its settings.
    """
    code_behind.cache_clear()
    return _identity(value, (), {})


def identity_fingerprint(*values: Any) -> str:
    """SHA-256 over the identities of the values."""
    return fingerprint([identity(value) for value in values])


def _identity(value: Any, outer: tuple[int, ...], code: dict[int, int]) -> Any:
    """Identity of `value` within the objects `outer`; `code` numbers the functions and classes that were met before."""
    if value is None or type(value) in (bool, int, float):
        return value
    if type(value) is str:
        return ["file", value, file_hash(Path(value))] if names_a_file(value) else value
    if id(value) in outer:  # an object that refers to itself
        return ["inside itself", len(outer) - outer.index(id(value))]
    outer = (*outer, id(value))

    def inner(item: Any) -> Any:
        return _identity(item, outer, code)

    if isinstance(value, types.ModuleType):
        return ["module", value.__name__, version_of(value)]
    if isinstance(value, type) or isinstance(value, (types.FunctionType, types.CodeType)):
        if id(value) not in code:
            code[id(value)] = len(code)
            return _class(value, inner) if isinstance(value, type) else _function(value, inner)
        return ["code", code[id(value)]]
    name = inner(type(value))
    if isinstance(value, Enum):
        return [name, value.name]
    if isinstance(value, bytes):
        return [name, hashlib.sha256(value).hexdigest()]
    if isinstance(value, Path):
        return [name, str(value), path_hashes(value)]
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return [name, str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, weakref.ref):
        return [name, inner(value())]
    if isinstance(value, functools.partial):
        return [name, inner(value.func), inner(value.args), inner(sorted(value.keywords.items())), inner(vars(value))]
    if inspect.isroutine(value) and _has(value, "__qualname__"):  # a method, or a function in C
        parts = [inner(getattr(value, part, None)) for part in ("__func__", "__self__", "__wrapped__", "__objclass__")]
        module = sys.modules.get(str(getattr(value, "__module__", None)))
        return [name, value.__qualname__, version_of(module), *parts, inner(attributes_of(value))]
    if _has(value, "backend_tokenizer", "chat_template"):
        return [name, tokenizer_identity(value)]
    if in_project(type(value).__module__) and _has(value, "identity"):
        return [name, value.identity()]
    if isinstance(value, torch.nn.Module):
        return [name, *map(inner, _module_parts(value))]
    kind: Any = type(value)
    complete = kind in _CONTAINERS or isinstance(value, Set)  # its items and attributes are all that it has
    if not complete and kind.__reduce__ is not object.__reduce__ and is_library(kind.__module__):
        state = [_reduced(value, inner)]  # a library states what makes an equal object: its pickle form
    else:
        attributes = None if kind in _CONTAINERS else attributes_of(value)
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


def _has(value: Any, *names: str) -> bool:
    try:
        return all(hasattr(value, name) for name in names)
    except Exception:  # attributes that are looked up by code of the object, which may raise anything
        return False


#: attributes of a tokenizer that tell where it came from, or that stand in its identity in another form
_ORIGIN = {
    "_tokenizer",
    "_special_tokens_map",
    "_processor_class",
    "_in_target_context_manager",
    "chat_template",
    "deprecation_warnings",
    "files_loaded",
    "init_inputs",
    "init_kwargs",
    "name_or_path",
    "verbose",
    "vocab_file",
}


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """The rules, chat template and settings of a tokenizer, which decide its tokens and texts, as plain data."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else identity(vars(tokenizer))
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    settings = {name: value for name, value in sorted(vars(tokenizer).items()) if name not in _ORIGIN}
    parts = {"rules": fingerprint([rules]), "chat_template": tokenizer.chat_template, "special_tokens": special}
    return parts | {"settings": identity(settings)}


def _class(kind: type, inner: Any) -> Any:
    """A class by the code behind it and its bases, or, outside this project, by its members."""
    parts: list[Any] = [f"{kind.__module__}.{kind.__qualname__}"]
    for base in kind.__mro__[:-1]:
        if in_project(base.__module__):
            parts += [code_behind(base.__module__), inner(_changed_members(base))]
        elif not is_library(base.__module__):
            members = {n: m for n, m in vars(base).items() if n != "_abc_impl" and (n[:2] != "__" or callable(m))}
            parts.append([base.__qualname__, inner(sorted((n, _member(m)) for n, m in members.items()))])
        else:
            parts.append([base.__qualname__, version_of(sys.modules.get(base.__module__))])
    return parts


def _changed_members(kind: type) -> list[tuple[str, Any]]:
    """Members that may not come from the class's file: plain values, and functions that were defined elsewhere."""
    changed: list[tuple[str, Any]] = []
    for name, member in sorted(vars(kind).items()):
        parts = _member(member)
        functions = [one for one in (parts if isinstance(parts, list) else [parts]) if inspect.isfunction(one)]
        if elsewhere := [one for one in functions if not _defined_in(one, kind)]:
            changed.append((name, elsewhere))
        elif name[:2] != "__" and type(member) in (bool, int, float, str, tuple):
            changed.append((name, member))
    return changed


def _defined_in(function: Any, kind: type) -> bool:
    inside: bool = function.__qualname__.startswith(f"{kind.__qualname__}.")
    return inside and function.__module__ == kind.__module__


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
    if function.__code__ is _SINGLE_DISPATCH:  # its closure also holds a cache of the types that were met
        cases = sorted(function.registry.items(), key=lambda case: f"{case[0].__module__}.{case[0].__qualname__}")
        return [place, inner(cases), inner(sorted((n, v) for n, v in vars(function).items() if n not in _DISPATCH))]
    closure = [_cell(cell, inner) for cell in function.__closure__ or ()]
    named = sorted((function.__kwdefaults__ or {}).items())
    settings = [inner(function.__defaults__), inner(named), closure, inner(sorted(vars(function).items()))]
    if is_library(function.__module__):
        return [place, version_of(sys.modules.get(function.__module__)), *settings]
    if in_project(function.__module__):
        return [place, code_behind(function.__module__), inner(function.__code__), *settings]
    used = {name: inner(part) for name, part in sorted(used_globals(function).items())}
    return [place, inner(function.__code__), *settings, used, lazy_imports(function.__code__, function.__globals__)]


def _cell(cell: Any, inner: Any) -> Any:
    try:
        return inner(cell.cell_contents)
    except ValueError:  # not yet assigned
        return "empty"


def _module_parts(module: torch.nn.Module) -> tuple[Any, ...]:
    """Weights and buffers, and the classes, settings and hooks of all parts of a network."""
    return dict(module.named_buffers()), dict(module.state_dict()), network_parts(module)


def network_parts(module: torch.nn.Module) -> dict[str, list[Any]]:
    """[class, settings, hooks] of every part of a network, by its name; a replaced `forward` is one of the settings."""
    parts, of_all = {}, vars(torch.nn.Module())
    for name, part in module.named_modules():
        settings = sorted((n, v) for n, v in vars(part).items() if n not in of_all)
        if is_library(type(part).__module__):  # transformers keeps plans here whose order differs between processes
            settings = [(n, v) for n, v in settings if not n.startswith("_")]
        parts[name] = [type(part), settings, forward_hooks(part)]
    return parts


def replaced_methods(value: Any) -> list[tuple[str, Any]]:
    """Attributes of an object itself that take the place of methods of its class, sorted by name.

    A method bound to the object counts by its function, and not at all if it is the class's own, which DDP leaves.
    """
    methods = {name: part for name, part in vars(value).items() if callable(getattr(type(value), name, None))}
    replaced = {n: part.__func__ if getattr(part, "__self__", None) is value else part for n, part in methods.items()}
    return sorted((name, part) for name, part in replaced.items() if part is not getattr(type(value), name))


def forward_hooks(module: torch.nn.Module) -> list[Any]:
    """The hooks of one network's forward, without PyTorch's own for weights in shards, which hold process groups."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [one for one in hooks if not str(getattr(one, "__module__", "")).startswith("torch.distributed.")]


def attributes_of(value: Any) -> list[Any] | None:
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
