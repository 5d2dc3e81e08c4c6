"""Equality of expressions by math-verify and sympy. It runs in an answer process, which can be ended.

The module imports only its neighbours, because the answer processes (rewards/answer_process.py) load it alone.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rewards.math_text import spelled

#: equal(first, second) and value(text), from sympy
Algebra = tuple[Callable[[str, str], bool], Callable[[str], float | None]]


class NeedsAlgebra(Exception):
    """Two expressions that only a computer algebra system can compare."""


def sympy_algebra() -> Algebra:
    """Equality by math-verify and sympy, and the value of an expression without variables."""
    from math_verify import LatexExtractionConfig, parse, verify

    @lru_cache(maxsize=256)
    def parsed(text: str) -> Any:
        return parse(f"${text}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    def equal(first: str, second: str) -> bool:
        one, other = parsed(first), parsed(second)
        if "=" in first and "=" in second:
            return _equivalent(one, other)
        verdict = _at_points(one[0], other[0]) if one and other else None
        return bool(verify(one, other, timeout_seconds=None)) if verdict is None else verdict

    def value(text: str) -> float | None:
        try:
            return float(parsed(text)[0].doit().evalf())
        except (TypeError, ValueError, IndexError, AttributeError, OverflowError):
            return None

    return equal, value


#: points at which expressions with variables are compared, chosen to avoid special values
_POINTS = ("0.7390851332", "-1.2824271291", "2.6854520010", "-0.3141592654")


def _at_points(first: Any, second: Any) -> bool | None:
    """Whether two expressions have the same values at some points; None if they have no values or nearly equal ones.

    It takes a hundredth of the time of a simplification, which most pairs of a right and a wrong answer do not need.
    """
    from sympy import Expr, Float, I, Rational, nan, zoo

    if not isinstance(first, Expr) or not isinstance(second, Expr):
        return None
    first, second = (
        expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})
        for expression in (first, second)
    )
    if {symbol.name for symbol in first.free_symbols ^ second.free_symbols} == {"i"}:  # i and \\sqrt{-1}
        first, second = (
            expression.xreplace({symbol: I for symbol in expression.free_symbols if symbol.name == "i"})
            for expression in (first, second)
        )
    names, alike = sorted(first.free_symbols | second.free_symbols, key=str), 0
    if len(names) > 6:
        return None
    points = len(_POINTS) if names else 1
    for shift in range(points):
        at = {
            name: Float(_POINTS[(shift + place) % len(_POINTS)], 30) * (place + 1) for place, name in enumerate(names)
        }
        values = [expression.doit().subs(at).evalf(30) for expression in (first, second)]
        if any(not value.is_number or value in (nan, zoo) or value.is_finite is not True for value in values):
            continue
        distance, size = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]), 1)
        if distance > size * 1e-5:
            return False
        if distance > size * 1e-24:
            return None
        alike += 1
    return True if alike == points else None


def _equivalent(first: Any, second: Any) -> bool:
    """Whether two equations have the same solutions: the differences of their sides are proportional."""
    from sympy import Eq, simplify

    if not first or not second or not isinstance(first[0], Eq) or not isinstance(second[0], Eq):
        return False
    one, other = first[0].lhs - first[0].rhs, second[0].lhs - second[0].rhs
    if one.free_symbols != other.free_symbols or not one.free_symbols or other == 0:
        return False
    ratio = simplify(one.doit() / other.doit())
    return bool(ratio.is_number and ratio != 0 and ratio.is_finite)


def readable_by_algebra(text: str) -> bool:
    """Whether math-verify reads a text as an expression, and computes it within the time of an answer process."""
    from math_verify import LatexExtractionConfig, parse

    expressions = parse(
        f"${spelled(text)}$",
        [LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    for expression in expressions:
        try:
            expression.doit().evalf()
        except (TypeError, ValueError, AttributeError):
            pass  # a set, a relation: nothing to compute
    return bool(expressions)
