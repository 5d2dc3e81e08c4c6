"""Sets of real numbers in one notation: intervals and their unions, however an answer writes them.

The module imports only its neighbours, because the answer processes (rewards/answer_process.py) load it alone.
"""

import re

from rewards.math_text import elements, spelled

_ORDER = re.compile(r"\\le(?![a-zA-Z])|\\ge(?![a-zA-Z])|<|>")
_BUILDER = re.compile(
    r"\\\{\s?([a-zA-Z])\s?(?:\\in\s?\\(?:mathbb|mathbf)\s?\{?\s?R\s?\}?\s?)?"
    r"(?:\\mid(?![a-zA-Z])|\\vert(?![a-zA-Z])|\||:)"
    r"(?P<condition>.{1,400})\\\}",
    re.DOTALL,
)
_ALL = re.compile(
    r"\\mathbb\s?\{?\s?R\s?\}?|ℝ|\\text\s?\{\s?all real numbers\s?\}|all real numbers|\(-\\infty\s?,\s?\+?\\infty\s?\)",
    re.IGNORECASE,
)
_EXCEPT = re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])|(?<=[R}])\s?[-\\]\s?(?=\\\{)")
_OR = re.compile(r"\\cup(?![a-zA-Z])|\\(?:lor|vee)(?![a-zA-Z])|\\text\s?\{\s?,?\s?or\s?\}|,?\sor\s", re.IGNORECASE)
_AND = re.compile(r"\\(?:land|wedge)(?![a-zA-Z])|\\text\s?\{\s?,?\s?and\s?\}|\sand\s|,", re.IGNORECASE)
_UNEQUAL = re.compile(r"[a-zA-Z]\s?\\ne(?![a-zA-Z])\s?([^<>=]{1,100})")
_FRENCH = re.compile(r"([\[\]])([^\[\]]{1,200}[,;][^\[\]]{1,200})([\[\]])")
_NUMBER = re.compile(r"-?\d{1,30}(?:\.\d{1,30})?")


def real_set(text: str) -> list[str]:
    """The intervals of a set of real numbers: 0 \\le x < 1 is [0,1), x \\ne 2 is (-\\infty,2) and (2,\\infty).

    A text that is not a set of real numbers comes back alone, without a leading `x \\in`.
    """
    text = re.sub(r"^[a-zA-Z]\s?\\in(?![a-zA-Z])\s?", "", spelled(text))
    if (built := _BUILDER.fullmatch(text)) is not None:
        text = built["condition"].strip()
    if _ALL.fullmatch(text):
        return [r"(-\infty,\infty)"]
    if (excluded := _excluded(text)) is not None:
        return excluded
    parts = [part.strip() for part in _OR.split(text)]
    if len(parts) > 1 and all(parts):
        intervals = [_interval(part) for part in parts]
        is_union = "\\cup" in text or all(one != part for one, part in zip(intervals, parts, strict=True))
        return intervals if is_union else [text]
    return [_interval(text)]


def _excluded(text: str) -> list[str] | None:
    """The intervals between the numbers that an answer excludes from the real numbers."""
    sides = _EXCEPT.split(text, maxsplit=1)
    if len(sides) == 2 and _ALL.fullmatch(sides[0].strip()):
        inside = re.fullmatch(r"\\\{(.{1,200})\\\}", sides[1].strip())
        values = elements(inside[1], bracketed=True) if inside else []
    else:
        conditions = [_UNEQUAL.fullmatch(part.strip()) for part in _AND.split(text)]
        values = [match[1].strip() for match in conditions if match is not None]
        if len(values) < len(conditions):
            return None
    if not values or (len(values) > 1 and not all(map(_NUMBER.fullmatch, values))):
        return None
    limits = ["-\\infty", *(sorted(values, key=float) if len(values) > 1 else values), "\\infty"]
    return [f"({low},{high})" for low, high in zip(limits[:-1], limits[1:], strict=True)]


def _interval(text: str) -> str:
    """An inequality of one variable, or two of which one bounds it above and one below, as an interval."""
    if (french := _FRENCH.fullmatch(text)) is not None and (french[1] == "]" or french[3] == "["):
        opening, closing = "[" if french[1] == "[" else "(", "]" if french[3] == "]" else ")"
        return f"{opening}{french[2].replace(';', ',')}{closing}"
    pieces = [part.strip() for part in _AND.split(text)]
    if len(pieces) == 2 and all(pieces):
        return _both(*map(_interval, pieces)) if all(len(_ORDER.findall(piece)) == 1 for piece in pieces) else text
    signs, sides = _ORDER.findall(text), [side.strip() for side in _ORDER.split(text)]
    variable = [place for place, side in enumerate(sides) if re.fullmatch(r"[a-zA-Z]", side)]
    if not signs or len(variable) != 1 or len(sides) != len(signs) + 1 or len(signs) > 2 or not all(sides):
        return text
    up = [sign in ("<", "\\le") for sign in signs]
    closed = ["\\" in sign for sign in signs]
    if len(signs) == 1:
        limit, variable_left = sides[1 - variable[0]], variable[0] == 0
        if up[0] == variable_left:
            return f"(-\\infty,{limit}{']' if closed[0] else ')'}"
        return f"{'[' if closed[0] else '('}{limit},\\infty)"
    if variable[0] != 1 or up[0] != up[1]:
        return text
    low, high = (sides[0], sides[2]) if up[0] else (sides[2], sides[0])
    left, right = (closed[0], closed[1]) if up[0] else (closed[1], closed[0])
    return f"{'[' if left else '('}{low},{high}{']' if right else ')'}"


def _both(first: str, second: str) -> str:
    """The intersection of an interval that is bounded above and one that is bounded below, in either order."""
    above, below = (first, second) if first.startswith("(-\\infty,") else (second, first)
    if not above.startswith("(-\\infty,") or not below.endswith(",\\infty)"):
        return f"{first},{second}"
    return below.removesuffix("\\infty)") + above.removeprefix("(-\\infty,")
