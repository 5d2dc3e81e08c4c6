"""Units of measure after numbers: their names, dimensions and sizes.

The module imports nothing of the project, because the answer processes (rewards/answer_process.py) load it alone.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True)
class Unit:
    """A unit: its dimension (`length^2` for an area; None if the word is unknown), and its size in the base unit."""

    dimension: str | None
    size: Fraction


UNKNOWN = Unit(None, Fraction(1))
PERCENT = Unit("percent", Fraction(1))
DEGREE = Unit("angle", Fraction(1))

_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100", "dm decimeter decimetre": "1/10",
        "m meter metre": "1",
        "km kilometer kilometre": "1000", "in inch inche": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "mass": {"mg milligram": "1/1000", "g gram gramme": "1", "kg kilogram kilo": "1000", "oz ounce": "28.349523125",
    "lb pound": "453.59237",
             "ton": "907184.74", "tonne": "1000000"},
    "time": {"ms millisecond": "1/1000", "s sec second": "1", "min minute": "60", "h hr hour": "3600",
             "day": "86400", "week": "604800"},
    "month": {"month": "1", "yr year": "12"},
    "volume": {"ml milliliter millilitre": "1/1000", "l liter litre": "1", "gal gallon": "3.785411784"},
    "dollar": {"\\$ dollar usd buck": "1", "¢ cent penny pennie": "1/100"},
    "euro": {"€ euro eur": "1"},
    "pound": {"£ gbp": "1"},
    "yen": {"¥ yen yuan rmb 元": "1"},
    "rupee": {"₹ rupee": "1"},
    "angle": {"° degree deg": "1"},
    "radian": {"radian rad": "1"},
    "temperature": {"°c celsius": "1"},
    "fahrenheit": {"°f fahrenheit": "1"},
    "percent": {"% percent pct percentage": "1"},
    "speed": {"mph": "1609.344/3600", "kph": "1000/3600"},
}  # fmt: skip


def _ratio(text: str) -> Fraction:
    top, _, bottom = text.partition("/")
    return Fraction(top) / Fraction(bottom or "1")


NAMES = {
    word: Unit(dimension, _ratio(size))
    for dimension, units in _TABLE.items()
    for words, size in units.items()
    for word in words.split()
}
#: characters of the longest text that may be a unit
LONGEST_UNIT = 100
#: units of one letter, which is a variable if nothing marks it as a unit
LETTERS = {name for name in NAMES if len(name) == 1 and name.isascii() and name.isalpha()}
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERED = re.compile(r"([a-z°%\\$€£¥₹¢元]{1,30})\.?(?:\s?\^\s?\{?([23])\}?)?")


def _named(word: str) -> Unit | None:
    word = word.removesuffix(".")
    return (
        NAMES.get(word) or NAMES.get(word.removesuffix("s")) or (NAMES.get(word[:-2]) if word.endswith("es") else None)
    )


@lru_cache(maxsize=4096)
def unit_of(text: str) -> Unit:
    """The unit of a text: `cm`, `square inches`, `km/h`, `meters per second`, `cm^2`; UNKNOWN for other words."""
    if len(text) > LONGEST_UNIT:
        return UNKNOWN
    text = " ".join(text.lower().replace("^\\circ", "°").replace("^{\\circ}", "°").replace("\\%", "%").split()).strip(
        " ."
    )
    text = re.sub(r"° ?([cf])$", r"°\1", text)
    text = re.sub(r"[ .*]{1,3}([a-z]{1,20})\s?\^\s?\{?-1\}?$", r"/\1", text)  # m s^-1
    text = re.sub(r"[ .*]{1,3}([a-z]{1,20})\s?\^\s?\{?-([23])\}?$", r"/\1^\2", text)
    over = re.split(r"\s?/\s?| per | an ", text, maxsplit=1)
    if len(over) == 2:
        top, bottom = unit_of(over[0]), unit_of(over[1])
        if top.dimension is None or bottom.dimension is None:
            return UNKNOWN
        is_speed = (top.dimension, bottom.dimension) == ("length", "time")
        return Unit("speed" if is_speed else f"{top.dimension}/{bottom.dimension}", top.size / bottom.size)
    words = text.split()
    power = 1
    if len(words) > 1 and words[0].rstrip(".") in _POWER_WORDS:
        power, words = _POWER_WORDS[words[0].rstrip(".")], words[1:]
    if len(words) > 1 and words[-1] in ("squared", "cubed"):
        power, words = (2 if words[-1] == "squared" else 3), words[:-1]
    if len(words) == 2 and words[0] in ("us", "degrees", "degree"):
        words = words[1:]
    match = _POWERED.fullmatch(" ".join(words))
    unit = match and _named(match[1])
    if not match or not unit:
        return UNKNOWN
    power = int(match[2] or power)
    return unit if power == 1 else Unit(f"{unit.dimension}^{power}", unit.size**power)


def is_unit(text: str) -> bool:
    """Whether a text names a known unit."""
    return unit_of(text).dimension is not None


def same_amount(first: Fraction, first_unit: str | None, second: Fraction, second_unit: str | None) -> bool:
    """Whether two numbers with units (None: without) are the same amount.

    A unit that only one of them has, or that is unknown, is ignored; 40 % equals 40 and 0.4; two known units are
    converted.
    """
    if first == second and (first_unit is None or second_unit is None):
        return True
    units = [unit_of(name) if name is not None else None for name in (first_unit, second_unit)]
    percents = [unit == PERCENT for unit in units]
    if percents[0] != percents[1]:
        other = units[0] if percents[1] else units[1]
        values = (first / 100, second) if percents[0] else (first, second / 100)
        return other is None and values[0] == values[1] or (other == UNKNOWN and first == second)
    if units[0] is None or units[1] is None or units[0].dimension is None or units[1].dimension is None:
        return first == second
    return units[0].dimension == units[1].dimension and first * units[0].size == second * units[1].size
