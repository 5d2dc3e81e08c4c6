"""Every regular expression of the project, found in its sources, with the ways in which it is used."""

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: packages that see prompts, completions, data rows or replies of others
PACKAGES = ("rewards", "rollouts", "policies", "datamodules", "lightning_modules", "callbacks", "objectives", "support",
            "cli", "tracking", "environments")  # fmt: skip
USES = {"search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer"}


def sources():
    """(path, tree) of every module."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_re_call(node):
    function = node.func
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "re"


def named_patterns():
    """name -> compiled pattern, of the modules' own variables and of the containers among them."""
    found = {}
    for path, tree in sources():
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        if not any(isinstance(node, ast.Call) and is_re_call(node) for node in ast.walk(tree)):
            continue
        module = importlib.import_module(module_of(path))
        for name in sorted(names & set(vars(module))):
            value = getattr(module, name)
            for part in (
                value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
            ):
                for one in part if isinstance(part, tuple) else [part]:
                    if isinstance(one, re.Pattern):
                        found.setdefault((module_of(path), name), []).append(one)
    return found


def uses_of_names():
    """variable name -> the methods that are called on it anywhere."""
    used = {}
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in USES:
                value = node.value
                name = (
                    value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
                )
                used.setdefault(name, set()).add(node.attr)
    return used


def direct_calls():
    """(module, method, source of the pattern, its value or None) of every re.method(pattern, ...)."""
    for path, tree in sources():
        inside = {
            id(inner) for top in tree.body if isinstance(top, (ast.Assign, ast.AnnAssign)) for inner in ast.walk(top)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and is_re_call(node)) or node.func.attr not in USES | {"compile"}:
                continue
            if node.func.attr == "compile" and id(node) in inside:
                continue  # a variable of the module, see named_patterns
            try:
                value = ast.literal_eval(node.args[0])
            except ValueError:
                value = None
            yield module_of(path), node.func.attr, ast.unparse(node.args[0]), value
