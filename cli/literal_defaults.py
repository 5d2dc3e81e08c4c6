"""Defaults that the parser can take apart: a call whose keywords are literals, tuples and lists included.

jsonargparse reads `lambda p: AdamW(p, lr=5e-6, betas=(0.9, 0.95))` from the source only if every keyword is a single
constant. Otherwise the default stays a function: no option of it can be set alone, and an optimizer that a
configuration names starts from PyTorch's values instead of the method's.
"""

import ast
from typing import Any

from jsonargparse import _parameter_resolvers


def is_literal(node: ast.AST) -> bool:
    """Whether a node of the source is a constant, or a tuple or list of literals."""
    if isinstance(node, ast.Tuple | ast.List):
        return all(map(is_literal, node.elts))
    return isinstance(node, ast.Constant)


def literal(node: Any) -> Any:
    """The value of a node for which `is_literal` holds."""
    return ast.literal_eval(node)


def register() -> None:
    """Make all parsers read such defaults."""
    _parameter_resolvers.ast_is_constant = is_literal
    _parameter_resolvers.ast_get_constant_value = literal
