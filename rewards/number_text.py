"""Numbers in texts, with exponents, leading points, other scripts, groups of digits and simple LaTeX fractions.

All functions take time linear in the length of their text. The module imports nothing of the project, because the
answer processes (rewards/answer_process.py) load it alone.
"""

import re
import unicodedata
from collections import deque
from fractions import Fraction
from functools import lru_cache

#: hyphens and dashes that stand for a minus sign
MINUS = "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"
#: spaces that separate groups of digits; kept apart from the plain blank, which separates numbers
GROUP_SPACE = "\u2009"
_SPECIAL = {
    **dict.fromkeys(MINUS, "-"),
    **dict.fromkeys("\u202f\u2008\u2007", GROUP_SPACE),
    **dict.fromkeys("\u00a0\u3000\u2002\u2003\u2004\u2005\u2006\u200a", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", ""),
    "\u2044": "/", "\u2215": "/", "\u066b": ".", "\u066c": ",", "\u066a": "%", "\u2019": "'",
}  # fmt: skip
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_RAISED = re.compile(f"[{_SUPERSCRIPTS}]+")
_LOWERED = re.compile(f"[{_SUBSCRIPTS}]+")
#: maximum number of digits of a number
LONGEST = 4000
#: largest exponent of ten that is read
LARGEST_EXPONENT = 4000


@lru_cache(maxsize=4096)
def _plain_character(character: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if "\uff01" <= character <= "\uff5e":  # full-width forms of ASCII
        return chr(ord(character) - 0xFEE0)
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    decomposed = unicodedata.normalize("NFKC", character) if unicodedata.category(character) == "No" else ""
    numerator, slash, denominator = decomposed.partition("\u2044")
    if slash and numerator.isdecimal() and denominator.isdecimal():  # a vulgar fraction such as U+00BD
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    return character


def plain(text: str) -> str:
    """The text with ASCII digits, minus signs, fractions and exponents instead of their Unicode forms."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda match: "^{" + unicodedata.normalize("NFKC", match[0]).replace("\u2212", "-") + "}", text)
    text = _LOWERED.sub(lambda match: "_{" + unicodedata.normalize("NFKC", match[0]) + "}", text)
    return "".join(character if character < "\x80" else _plain_character(character) for character in text)


# Every repetition is bounded or over one kind of characters, so that no position is visited more than a few times.
_GROUPED = rf"\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d{{1,3}}(?:{GROUP_SPACE}\d{{3}})+(?!\d)|\d{{1,3}}(?:'\d{{3}})+(?!\d)"
_DECIMAL = rf"(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)"
_POWER = (
    r"[ ]?(?:\\times|\\cdot|[×·*xX])[ ]?10[ ]?(?:\^|\*\*)[ ]?"
    r"(?:\{[ ]?(?P<braced>[-+]?\d+)[ ]?\}|(?P<bare>[-+]?\d+))"
)
_PART = (
    r"\\[dtc]?frac[ ]?(?:\{[ ]?(?P<top>[-+]?[\d.,]{1,400})[ ]?\}|(?P<top1>\d))[ ]?"
    r"(?:\{[ ]?(?P<bottom>[-+]?[\d.,]{1,400})[ ]?\}|(?P<bottom1>\d))"
)
NUMBER = re.compile(
    rf"(?P<sign>(?<![\d)\]}}])[-+])?"
    rf"(?:(?P<whole>\d{{1,40}})?[ ]?{_PART}"
    r"|(?<![\d.,])10[ ]?(?:\^|\*\*)[ ]?(?:\{[ ]?(?P<ten>[-+]?\d+)[ ]?\}|(?P<tenth>[-+]?\d+))"
    rf"|(?P<mixed>\d{{1,40}})[ ](?P<over>\d{{1,40}})/(?P<under>\d{{1,40}})(?![\d/])"
    rf"|(?P<value>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d+)|{_POWER}|[ ]?/[ ]?(?P<divisor>{_DECIMAL}))?)"
)


def _decimal(digits: str) -> Fraction:
    digits = digits.replace(",", "").replace(GROUP_SPACE, "").replace("'", "")
    if len(digits) > LONGEST:
        raise ValueError("too long a number")
    return Fraction(("0" if digits.startswith(".") else "") + digits)


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    try:
        if part["top"] or part["top1"]:
            value = _decimal(part["top"] or part["top1"]) / _decimal(part["bottom"] or part["bottom1"])
            if part["whole"]:
                value += _decimal(part["whole"])
        elif part["mixed"]:
            value = _decimal(part["mixed"]) + _decimal(part["over"]) / _decimal(part["under"])
        else:
            value = _decimal(part["value"] or "1")
            if exponent := part["ten"] or part["tenth"] or part["exponent"] or part["braced"] or part["bare"]:
                if abs(int(exponent)) > LARGEST_EXPONENT:
                    return None
                value *= Fraction(10) ** int(exponent)
            if part["divisor"]:
                value /= _decimal(part["divisor"])
    except (ValueError, ZeroDivisionError):
        return None
    return -value if part["sign"] == "-" else value


_DECIMAL_COMMA = re.compile(r"(?<=\d)\{,\}(?=\d{1,2}(?!\d)|\d{4})")
_REPEATING = re.compile(
    r"(?<![\d.])(?P<whole>\d{0,40})\.(?:"
    r"(?P<fixed>\d{0,40})(?:\\(?:overline|bar)\s?(?:\{(?P<period>\d{1,40})\}|(?P<digit>\d))|"
    r"\((?P<bracketed>\d{1,40})\)|"
    r"\\dot\s?\{?(?P<first>\d)\}?(?:(?P<inner>\d{0,40})\\dot\s?\{?(?P<last>\d)\}?)?)|"
    r"(?P<before>\d{0,8}?)(?P<again>\d{1,6}?)(?P=again){2,12}\s?(?:\.\.\.|…|\\[lc]?dots(?![a-zA-Z])))"
)


def _repeated(match: re.Match[str]) -> str:
    part = {name: text or "" for name, text in match.groupdict().items()}
    fixed = part["fixed"] or part["before"]
    period = part["period"] or part["digit"] or part["bracketed"] or part["again"]
    period = period or part["first"] + part["inner"] + part["last"]
    value = Fraction(int(fixed + period) - int(fixed or 0), 10 ** len(fixed) * (10 ** len(period) - 1))
    value += int(part["whole"] or 0)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def plain_decimals(text: str) -> str:
    """The text with fractions for repeating decimals (`0.1\\overline{6}`, 0.333...) and a point for TeX's `1{,}5`."""
    text = _DECIMAL_COMMA.sub(".", text) if "{,}" in text else text
    return _REPEATING.sub(_repeated, text) if "." in text else text


_NO_SPACE = re.compile(r"(?:\\[!,;:]|\{,\})[ ]?")


def _joined(text: str) -> str:
    """The text without LaTeX's spaces inside numbers: `10,\\!080` and `10{,}080` are 10,080."""
    text = plain_decimals(text)
    if "\\" not in text and "{,}" not in text:
        return text
    return _NO_SPACE.sub(
        lambda match: "," if match[0].startswith("{") else "" if match[0].startswith("\\!") else GROUP_SPACE, text
    )


def numbers(text: str, last: int | None = None) -> list[Fraction | None]:
    """The numbers of a text in their order, all or the last so many; None for one without a value, such as 3/0."""
    return [_value(match) for match in deque(NUMBER.finditer(_joined(plain(text))), maxlen=last)]


def last_number(text: str) -> Fraction | None:
    """The last number of a text, None without one; thousands separators, exponents and simple fractions are read."""
    return next(iter(numbers(text, last=1)), None)


def number_of(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else, None for any other text."""
    match = NUMBER.fullmatch(_joined(plain(text)).strip())
    return None if match is None else _value(match)
