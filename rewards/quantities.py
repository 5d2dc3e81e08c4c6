"""Numbers with units, and numbers in other bases, in answers.

The module imports only its neighbours, because the answer processes (rewards/answer_process.py) load it alone.
"""

import re
from fractions import Fraction
from functools import lru_cache

from rewards.math_text import CACHED, DOLLAR, spelled
from rewards.number_text import NUMBER, number_of
from rewards.units import is_unit

_CURRENCY = f"[{DOLLAR}€£¥₹]"
#: words within mathematics
UNWRAP = re.compile(r"\\text\s?\{([^{}]{0,200})\}")
_UNIT = re.compile(
    rf"(?:{_CURRENCY}|%|\^?\\circ\s?[CF]?|"
    r"(?!(?:and|or)\b)[^\W\d_](?:[^\W\d_]|[ ./^{}'-]|(?<=[a-z^{])[23](?!\d)){0,60})"
)
_BASE = re.compile(r"([0-9A-Fa-f]+)\s{0,3}(?:_\s?\{?\s?(\d{1,2})\s?\}?|\(?\s?(?:in )?base\s{0,3}(\d{1,2})\s?\)?)\s?")


@lru_cache(maxsize=CACHED)
def quantity(text: str, letters: bool = False) -> tuple[Fraction, str | None] | None:
    """(number, unit or None) of a text that is a number with or without a unit; None for anything else.

    Args:
        letters: whether a single letter after the number is a unit such as m, not a variable.
    """
    whole = spelled(text)
    wrapped = "\\text" in whole
    whole = UNWRAP.sub(r" \1 ", whole).strip()
    negative = re.match(rf"([-+]?)\s?({_CURRENCY})\s?", whole)
    prefix = negative[2] if negative else None
    if negative:
        whole = negative[1] + whole[negative.end() :]
    match = NUMBER.match(whole)
    value = number_of(match[0]) if match else None
    if match is None or value is None:
        return None
    rest = whole[match.end() :].strip()
    if not rest:
        return value, prefix and prefix.replace(DOLLAR, "\\$")
    if not _UNIT.fullmatch(rest) or (len(rest.strip(".")) == 1 and rest.isalpha() and not (wrapped or letters)):
        return None
    if (
        not wrapped
        and not is_unit(unit_name(rest))
        and (whole[match.end()] != " " or not re.search(r"[^\W\d_]{3}", rest) or "^" in rest)
    ):
        return None  # 2k, 3 x, 5ab: products
    return value, unit_name(rest) if not prefix else prefix.replace(DOLLAR, "\\$")


def unit_name(text: str) -> str:
    """A unit as `units.unit_of` reads it."""
    return text.replace("^\\circ", "°").replace("\\circ", "°").replace(DOLLAR, "\\$").strip()


def same_numbers(first: Fraction, second: Fraction, texts: tuple[str, str]) -> bool:
    """Whether two numbers are equal, or one is the other rounded or truncated to six or more places."""
    if first == second:
        return True
    for text, (rounded, exact) in zip(texts, ((first, second), (second, first)), strict=True):
        places = re.search(r"\.(\d{6,30})\D*$", text)
        if places and exact.denominator not in (1,) and abs(rounded - exact) < Fraction(1, 10 ** len(places[1])):
            other = re.search(r"\.(\d+)\D*$", texts[1] if text is texts[0] else texts[0])
            return other is None or len(other[1]) > len(places[1])
    return False


def based(text: str) -> tuple[str, int] | None:
    """(digits, base) of a number with an explicit base, such as 2516_8."""
    match = _BASE.fullmatch(UNWRAP.sub(r" \1 ", spelled(text)))
    return (match[1].upper().lstrip("0") or "0", int(match[2] or match[3])) if match else None
