"""The code behind a module: the version of a library, otherwise a hash of its files and of all that they import.

Of this project whole packages count, with the packages that they import, because some of their files run as programs of
their own. Of other code each imported file counts, wherever its import stands. Nothing is imported to find it.
"""

import ast
import dis
import functools
import hashlib
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from support.files import INSTALLED, fingerprint

#: this project's packages
PROJECT = set(
    "callbacks cli datamodules environments lightning_modules objectives policies rewards rollouts support "
    "tracking".split()
)
#: functions that import the module that their first argument names
IMPORTERS = {"import_module", "__import__"}
_LIBRARIES = tuple(
    {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
#: names of the folders that installers fill
_SITES = {"site-packages", "dist-packages"}


def version_of(module: types.ModuleType | None) -> str:
    """The version of a library; of other modules, and of libraries that state none, the hash of the code behind it."""
    if module is None:
        return ""
    if is_library(module.__name__):
        top = module.__name__.partition(".")[0]
        if (version := getattr(sys.modules.get(top), "__version__", None)) is not None:
            return str(version)
        if top in sys.stdlib_module_names:
            return sys.version.partition(" ")[0]
        file = _file(module.__name__)
        return "" if file is None else _parsed(file)[0]
    return code_behind(module.__name__)


def is_library(module: str | None) -> bool:
    """Whether a module belongs to Python or an installed library, whose version stands for its code."""
    if module is None or module.partition(".")[0] in PROJECT:
        return False
    file = _file(module)
    if file is None:
        return module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}
    return _in_library(file)


def in_project(module: str | None) -> bool:
    """Whether a loaded module belongs to this project's packages; None for code without one."""
    file = _file(module) if module is not None and module.partition(".")[0] in PROJECT else None
    return file is not None and file.is_relative_to(INSTALLED)


@functools.cache
def code_behind(module: str) -> str:
    """SHA-256 over the files of a module and of all modules that it imports, libraries left out; "" for no file.

    Kept until `code_behind.cache_clear`, with which a new look at the files begins.
    """
    todo, hashes = [module], dict[str, str]()
    while todo:
        for name, file in _files(todo.pop()):
            top = name.partition(".")[0]
            if name in hashes or top in hashes:
                continue
            if top in PROJECT and file.is_relative_to(INSTALLED / top):
                parts = [_parsed(part) for part in sorted((INSTALLED / top).rglob("*.py"))]
                hashes[top] = fingerprint(digest for digest, _ in parts)
                imported = {one.partition(".")[0] for _, names in parts for one in names}
                todo += sorted(PROJECT & imported)
                break
            if _in_library(file):
                break
            hashes[name], names = _parsed(file)
            package = name if file.stem == "__init__" else name.rpartition(".")[0]
            todo += [one for one in map(functools.partial(_absolute, package=package), names) if one]
    return fingerprint(sorted(hashes.items())) if hashes else ""


def _absolute(name: str, package: str) -> str:
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:  # more dots than packages
        return ""


def _files(name: str) -> Iterator[tuple[str, Path]]:
    """(module, file) of the packages around a module and of itself, as far as they exist; no code is run."""
    places: list[str] | None = None
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        if end == 1 and part in sys.stdlib_module_names - {"__main__"}:
            return
        if (loaded := sys.modules.get(part)) is not None:
            origin, inside = getattr(loaded, "__file__", None), getattr(loaded, "__path__", None)
        else:
            try:
                spec = importlib.util.find_spec(part) if end == 1 else PathFinder.find_spec(part, places)
            except (ImportError, ValueError, AttributeError):
                return
            origin, inside = (None, None) if spec is None else (spec.origin, spec.submodule_search_locations)
        if origin is not None and Path(origin).is_file():
            yield part, Path(origin).resolve()
        if inside is None:
            return
        places = list(inside)


def _parsed(file: Path) -> tuple[str, tuple[str, ...]]:
    """(SHA-256 of a file, names of the modules that it imports, relative ones with their dots)."""
    now = file.stat()
    return _parsed_version(file, now.st_mtime_ns, now.st_ctime_ns, now.st_size)


@functools.cache
def _parsed_version(file: Path, *stamp: int) -> tuple[str, tuple[str, ...]]:
    content, names = file.read_bytes(), set[str]()
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a library in C, for example
        nodes = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            names |= {origin, *(f"{origin}{'.' if node.module else ''}{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args and isinstance(first := node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names |= {first.value} if called in IMPORTERS and isinstance(first.value, str) else set()
    return hashlib.sha256(content).hexdigest(), tuple(sorted(names))


def _file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve() if file and Path(file).is_file() else None


def _in_library(file: Path) -> bool:
    # The environment may lie inside this project's folder, and this project inside the environment. Libraries may also
    # lie in other environments: the system's, or one that a .pth file names.
    return any(file.is_relative_to(folder) for folder in _LIBRARIES) or not _SITES.isdisjoint(file.parts)


def used_globals(function: types.FunctionType) -> dict[str, Any]:
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
            if isinstance(part, types.ModuleType) and part.__name__ not in opened and not is_library(part.__name__)
        }
        opened |= {module.__name__ for module in modules.values()}
        reached = {
            f"{place}.{name}": getattr(module, name)
            for place, module in modules.items()
            for name in sorted(names & vars(module).keys())
        }
    return used


def lazy_imports(code: types.CodeType, around: dict[str, Any]) -> list[list[str]]:
    """Names and hashes of what a function imports when it runs, libraries left out."""
    names, packages = set[str](), [""]
    for package in str(around.get("__package__") or "").split("."):
        packages.append(f"{packages[-1]}{package}.")
    for part in _codes(code):
        origin = ""
        for step in dis.get_instructions(part):
            if step.opname == "IMPORT_NAME":
                names.add(origin := str(step.argval))
            elif step.opname == "IMPORT_FROM":
                names.add(f"{origin}.{step.argval}")
        if IMPORTERS & set(part.co_names):
            names |= {text for text in part.co_consts if isinstance(text, str) and text.replace(".", "").isidentifier()}
    # The number of dots of a relative import is not read: every package around the function is tried.
    candidates = {f"{package}{name}".strip(".") for package in packages for name in names} - {""}
    behind = ((name, code_behind(name)) for name in sorted(candidates))
    return [[name, digest] for name, digest in behind if digest]


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """The code of a function and of the functions inside it."""
    nested = [_codes(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return [code, *(inside for codes in nested for inside in codes)]
