"""Numbers with units, and numbers in other bases, in answers.

The module imports only its neighbours, because the answer processes (rewards/answer_process.py) load it alone.
"""

import re
from fractions import Fraction
from functools import lru_cache

from rewards.math_text import CACHED, DOLLAR, spelled
from rewards.number_text import NUMBER, number_of
from rewards.units import is_unit, unit_of

_CURRENCY = f"[{DOLLAR}€£¥₹]"
#: words within mathematics
UNWRAP = re.compile(r"\\text\s?\{([^{}]{0,200})\}")
_UNIT = re.compile(
    rf"(?:{_CURRENCY}|%|\^?\\circ\s?[CF]?|"
    r"(?!(?:and|or|is|are|was)\b)[^\W\d_](?:[^\W\d_]|[ ./^{}'-]|(?<=[a-z^{])[23](?!\d)|(?<=-)[123](?!\d)){0,60})"
)
_BASE = re.compile(r"([0-9A-Fa-f]+)\s{0,3}(?:_\s?\{?\s?(\d{1,2})\s?\}?|\(?\s?(?:in )?base\s{0,3}(\d{1,2})\s?\)?)\s?")


#: words that multiply the number before them
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7,
           "billion": 10**9, "trillion": 10**12}  # fmt: skip
_SCALE = re.compile(rf"({'|'.join(_SCALES)})s?(?![a-zA-Z])\s?(?:of )?", re.IGNORECASE)
#: a unit over a unit as a fraction, and units that follow with a smaller one: 2 hours 30 minutes
_OVER = re.compile(r"\\frac\s?\{\s?([a-zA-Z]{1,20}(?:\^[23])?)\s?\}\s?\{\s?([a-zA-Z]{1,20}(?:\^[23])?)\s?\}")
_FURTHER = re.compile(r"([a-zA-Z]{1,12}\.?),?\s?(?:and )?(\d{1,10}(?:\.\d{1,10})?)\s?([a-zA-Z]{1,12}\.?)")


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
    if (scale := _SCALE.match(rest)) is not None:
        value, rest = value * _SCALES[scale[1].lower()], rest[scale.end() :]
    rest = _OVER.sub(r"\1/\2", rest)
    if (further := _FURTHER.fullmatch(rest)) is not None:
        first, second = unit_of(further[1]), unit_of(further[3])
        if first.dimension is None or first.dimension != second.dimension or second.size >= first.size:
            return None
        return value + Fraction(further[2]) * second.size / first.size, further[1]
    if not rest:
        return value, prefix and prefix.replace(DOLLAR, "\\$")
    if not _UNIT.fullmatch(rest) or (len(rest.strip(".")) == 1 and rest.isalpha() and not (wrapped or letters)):
        return None
    if (
        not wrapped
        and not is_unit(unit_name(rest))
        and (whole[match.end() : match.end() + 1] != " " or not re.search(r"[^\W\d_]{3}", rest) or "^" in rest)
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
