"""Equality of mathematical answers: numbers with units, words, times, lists, intervals, equations; sympy for the rest.

Comparisons without algebra are made in the caller's process. The others raise NeedsAlgebra there and are repeated in an
answer process (rewards/answer_process.py), which loads this file without the rest of the project.
"""

import re
from fractions import Fraction
from functools import lru_cache

from rewards.math_algebra import Algebra, NeedsAlgebra
from rewards.math_text import (
    CACHED,
    FUNCTIONS,
    answers_in,
    bracketed,
    elements,
    is_readable,
    is_text,
    key,
    last_box,
    spelled,
    split_top,
    time_of,
    words_of,
)
from rewards.number_text import number_of
from rewards.quantities import UNWRAP, based, quantity, same_numbers, unit_name
from rewards.real_sets import real_set
from rewards.units import is_unit, same_amount, unit_of


class Unreadable(Exception):
    """The gold answer contains nothing that can be compared."""


# ---- the comparison --------------------------------------------------------------------------------------------------


def grade(gold: str, completion: str, algebra: Algebra | None = None) -> bool:
    """Whether a completion (without its reasoning) gives the gold answer.

    Raises:
        Unreadable: the gold answer contains nothing that can be compared.
        NeedsAlgebra: only an answer process can decide.
    """
    if not is_readable(gold):
        raise Unreadable(gold)
    candidates = answers_in(completion)
    if last_box(completion) is not None:
        return same(gold, candidates[0], algebra)
    for candidate in candidates:
        if key(candidate) == key(gold):
            return True
        clean = is_clean(candidate)
        if (clean or is_text(gold)) and same(gold, candidate, algebra):
            return True
        if clean:
            return False
    return False


@lru_cache(maxsize=CACHED)
def is_clean(candidate: str) -> bool:
    """Whether a candidate is a complete answer, after which the search ends; sentences are not."""
    if quantity(candidate) is not None or time_of(candidate) is not None:
        return True
    bare = re.sub(r"\\(?:begin|end)\s?\{[a-z]+\}|\\[a-zA-Z]+", " ", UNWRAP.sub(" ", spelled(candidate)))
    words = re.findall(r"[^\W\d_]{3,}|[^\x00-\x7f]|\b(?:so|it|we|no|to|of|by|be|as|at|an|he)\b", bare, re.IGNORECASE)
    return not any(word.lower() not in FUNCTIONS and not is_unit(word) for word in words)


def same(gold: str, answer: str, algebra: Algebra | None = None) -> bool:
    """Whether two answers are the same; the gold answer decides which form is required."""
    if not key(answer):
        return False
    if key(gold) == key(answer):
        return True
    if (amount := quantity(gold, letters=True)) is None or based(gold):
        if (clock := time_of(gold)) is not None:
            return _same_time(clock, time_of(answer))
        if is_text(gold):
            return _same_words(gold, answer)
    if (base := based(gold)) is not None:
        return base == based(answer)
    if (letter := _letter_of(gold)) is not None and letter == _letter_of(answer):
        return True  # B and \\text{(B)}
    if amount is not None:
        return _same_amount(gold, amount, answer, algebra)
    return _same_structure(gold, answer, algebra)


def _letter_of(text: str) -> str | None:
    """The letter of a text that is one, in brackets or not."""
    match = re.fullmatch(r"\s?\(?\s?([a-zA-Z])\s?\)?\s?", UNWRAP.sub(r" \1 ", spelled(text)))
    return match[1].lower() if match is not None else None


def _same_time(gold: tuple[int, int, int, str | None], answer: tuple[int, int, int, str | None] | None) -> bool:
    """Whether two times are the same; one without a.m. and p.m. is of 24 hours if its hour is 13 or more, or 0."""
    if answer is None or gold[1:3] != answer[1:3]:
        return False
    if gold[3] == answer[3] or (None in (gold[3], answer[3]) and gold[0] == answer[0]):
        return gold[0] == answer[0]
    hours = [time[0] % 12 + 12 * (time[3] == "p") if time[3] else time[0] for time in (gold, answer)]
    return None in (gold[3], answer[3]) and hours[0] == hours[1]


def _same_words(gold: str, answer: str) -> bool:
    wanted, words = words_of(gold), words_of(answer)
    if words == wanted:
        return True
    tail = re.split(r"\b(?:answer|result)\s+(?:is|=|:)\s*|[:：]\s*|(?:答案)?是", words)[-1]
    return words_of(tail) == wanted or re.sub(r"[\s-]", "", words) == re.sub(r"[\s-]", "", wanted)


def _same_amount(gold: str, amount: tuple[Fraction, str | None], answer: str, algebra: Algebra | None) -> bool:
    asserted = _asserted(gold, answer, algebra)
    if asserted is None:
        return False
    number = quantity(asserted, letters=True)
    if number is None:
        enclosed = bracketed(asserted)
        several = len(elements(asserted)) > 1 or (enclosed is not None and len(elements(enclosed[1], True)) > 1)
        return not several and based(asserted) is None and _same_expression(gold, asserted, algebra)
    if amount[1] is None and number[1] is None:
        return same_numbers(amount[0], number[0], (spelled(gold), spelled(asserted)))
    return same_amount(amount[0], amount[1], number[0], number[1])


# ---- equations -------------------------------------------------------------------------------------------------------


_MODULUS = re.compile(
    r"\s?(?:\\[pb]?mod\s?(?:\{[^{}]{1,20}\}|\w{1,10})|\(\s?(?:\\text\{mod\}|\\?mod)[^()]{1,20}\))\s?$"
)


def _asserted(gold: str, answer: str, algebra: Algebra | None) -> str | None:
    """The part of an answer to compare with a gold answer that is not an equation: the right-hand side of `x = 5`.

    None for a false equation such as 2 + 2 = 5.
    """
    exact = re.split(r"\\approx(?![a-zA-Z])|\\sim(?:eq)?(?![a-zA-Z])", spelled(answer))
    if len(exact) > 1:
        gold_number = number_of(spelled(gold))
        answer = next((part for part in exact if gold_number is not None and number_of(part) == gold_number), exact[0])
    if "mod" in answer and "mod" not in gold:
        answer = re.sub(r"\\equiv(?![a-zA-Z])", "=", _MODULUS.sub("", spelled(answer)))
    sides = [side.strip() for side in split_top(spelled(answer), ("=",))]
    if len(sides) < 2:
        return answer.strip() or None
    if not all(sides) or not _holds(sides, algebra):
        return None
    if sides[-1] == "0" and re.search(r"[a-zA-Z]", sides[-2]) and re.search(r"[-+]", sides[-2]):
        return None  # 5x - 7y + 4 = 0 is an equation, not the value 0
    return sides[0] if re.fullmatch(r"[a-zA-Z]", sides[-1]) and not re.fullmatch(r"[a-zA-Z]", sides[0]) else sides[-1]


def _holds(sides: list[str], algebra: Algebra | None) -> bool:
    """Whether the numeric sides of an equation are equal up to rounding; sides with variables are not checked."""
    values = []
    for side in sides:
        amount = quantity(side)
        if amount is not None:
            values.append(float(amount[0]))
        elif re.search(r"[+*/^()!]|\d\s?-|\\(?:frac|sqrt|cdot|times)", side) and not re.search(
            r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])", re.sub(r"\\[a-zA-Z]+", "\\\\", side)
        ):
            if algebra is None:
                raise NeedsAlgebra(side)
            if (value := algebra[1](side)) is not None:
                values.append(value)
    return all(abs(value - values[0]) <= 0.01 * max(abs(value), abs(values[0])) for value in values)


# ---- lists, sets, tuples, intervals ----------------------------------------------------------------------------------


def _expanded(parts: list[str]) -> list[str]:
    """The parts; each part with a plus-minus sign becomes two."""
    return [
        version
        for part in parts
        for version in (
            [re.sub(r"\\pm(?![a-zA-Z])", "+", re.sub(r"\\mp(?![a-zA-Z])", "-", part)).lstrip("+ "),
             re.sub(r"\\pm(?![a-zA-Z])", "-", re.sub(r"\\mp(?![a-zA-Z])", "+", part))]
            if re.search(r"\\[pm]{2}(?![a-zA-Z])", part) else [part]
        )
    ]  # fmt: skip


_MATRIX = re.compile(r"\\begin\{(pmatrix|matrix|array)\}(?:\{[lcr|\s]{0,20}\})?(.*)\\end\{\1\}", re.DOTALL)


def _cells(text: str) -> tuple[str, list[str]] | None:
    """("tuple of rows and columns", cells) of a text that is a matrix."""
    enclosed = bracketed(text)
    match = _MATRIX.fullmatch(enclosed[1] if enclosed is not None and enclosed[0] in ("(", "[") else text)
    if not match or "\\begin" in match[2]:
        return None
    rows = [row.split("&") for row in match[2].replace("\\\\", "\x02").strip(" \x02").split("\x02")]
    if len({len(row) for row in rows}) != 1:
        return None
    return f"tuple {len(rows)}x{len(rows[0])}", [cell.strip() for row in rows for cell in row]


def _members(text: str) -> tuple[str, list[str]]:
    """(kind, members): "list" for values in any order, "union" of sets, "tuple(]" and the like for brackets
    and matrices, "one" for a single expression."""
    union = real_set(text)
    if len(union) > 1:
        return "union", union
    text = union[0]
    if len(parts := elements(text)) > 1:
        return "list", _expanded(parts)
    if (cells := _cells(text)) is not None:
        return cells
    enclosed = bracketed(text)
    if enclosed is None:
        expanded = _expanded([text])
        return ("list" if len(expanded) > 1 else "one"), expanded
    opening, inner, closing = enclosed
    inner_parts = elements(inner, bracketed=True)
    if opening == "\\{":
        return "list", _expanded(inner_parts)
    if len(inner_parts) > 1:
        return f"tuple{opening}{closing}", inner_parts
    return "one", [text]


def _same_structure(gold: str, answer: str, algebra: Algebra | None) -> bool:
    kind, wanted = _members(gold)
    if kind == "tuple()" and (values := _by_name(_members(answer)[1])):  # x = 1, y = 2
        return len(values) == len(wanted) and all(
            same(one, other, algebra) for one, other in zip(wanted, values, strict=True)
        )
    is_equation = kind == "one" and len(split_top(wanted[0], ("=",))) > 1
    if not is_equation and kind != "list":
        asserted = _asserted(gold, answer, algebra)
        if asserted is None:
            return False
        answer = asserted
    answer_kind, members = _members(answer)
    if kind == "list" and answer_kind == "tuple()" and (values := _by_name(wanted)):
        kind, wanted = answer_kind, values
    if kind != answer_kind:
        return kind == "list" and len(wanted) == 1 and answer_kind == "one" and same(wanted[0], answer, algebra)
    if kind == "one":
        return (
            _same_equation(wanted[0], members[0], algebra)
            if is_equation
            else _same_expression(wanted[0], members[0], algebra)
        )
    if len(wanted) != len(members):
        return False
    if kind.startswith("tuple"):
        return all(same(first, second, algebra) for first, second in zip(wanted, members, strict=True))
    return _matched(wanted, members, algebra)


def _by_name(parts: list[str]) -> list[str]:
    """The values of a list of equations for single variables, each another one, in the order of the names; or none."""
    sides = [[side.strip() for side in split_top(part, ("=",))] for part in parts]
    names = {side[0] for side in sides if len(side) == 2 and re.fullmatch(r"[a-zA-Z]", side[0])}
    return [value for _, value in sorted(sides)] if len(names) == len(parts) else []


def _matched(wanted: list[str], members: list[str], algebra: Algebra | None) -> bool:
    """Whether wanted values and members match one to one."""
    if len(wanted) > 64:
        return sorted(map(key, wanted)) == sorted(map(key, members))
    left = list(members)
    for value in wanted:
        place = next((i for i, member in enumerate(left) if key(member) == key(value)), None)
        if place is None:
            place = next((i for i, member in enumerate(left) if same(value, member, algebra)), None)
        if place is None:
            return False
        del left[place]
    return True


# ---- expressions -----------------------------------------------------------------------------------------------------

_TRAILING_UNIT = re.compile(r"(?:\\text\s?\{([^{}]{1,60})\}\s?((?:\^\s?\{?[23]\}?)?)|\^\\circ|%)\s?$")


def _without_unit(text: str) -> tuple[str, str | None]:
    match = _TRAILING_UNIT.search(spelled(text)[-90:])
    if not match:
        return spelled(text), None
    return spelled(text)[: -len(match[0])].strip(), unit_name(
        (match[1] + match[2].replace(" ", "")) if match[1] else match[0]
    )


def _same_expression(gold: str, answer: str, algebra: Algebra | None) -> bool:
    (first, first_unit), (second, second_unit) = _without_unit(gold), _without_unit(answer)
    if (
        first_unit
        and second_unit
        and is_unit(first_unit)
        and is_unit(second_unit)
        and unit_of(first_unit) != unit_of(second_unit)
    ):
        return False
    if key(first) == key(second) and first:
        return True
    if not first or not second or len(first) > 2000 or len(second) > 2000:
        return False
    if algebra is None:
        raise NeedsAlgebra(gold)
    return algebra[0](first, second)


def _same_equation(gold: str, answer: str, algebra: Algebra | None) -> bool:
    """Whether an answer gives a gold equation: the same or an equivalent one.

    If the gold equation's left-hand side is a single variable, its right-hand side alone counts too.
    """
    wanted, sides = ([side.strip() for side in split_top(spelled(text), ("=",))] for text in (gold, answer))
    name = re.compile(r"[a-zA-Z](?:_\w)?|[a-zA-Z]\s?\([a-zA-Z]\)|\\[a-z]+")
    assigned = name.fullmatch(wanted[0]) is not None
    if len(sides) == 1:
        return assigned and same(wanted[-1], sides[0], algebra)
    if not all(sides) or not all(wanted) or not _holds(sides, algebra):
        return False
    if assigned and key(wanted[0]) == key(sides[0]):
        return same(wanted[-1], sides[-1], algebra)
    if assigned and key(wanted[0]) == key(sides[-1]):
        return same(wanted[-1], sides[0], algebra)
    if algebra is None:
        raise NeedsAlgebra(gold)
    return algebra[0](f"{wanted[0]}={wanted[-1]}", f"{sides[0]}={sides[-1]}")


def is_comparable(gold: str) -> bool:
    """Whether a gold answer can be compared without sympy: it is a number, a time, words, or a list of these.

    Raises:
        NeedsAlgebra: only sympy can decide whether it can read the answer.
    """
    if not is_readable(gold):
        return False
    if quantity(gold, letters=True) is not None or time_of(gold) or is_text(gold) or based(gold):
        return True
    if key(gold).lstrip("+-") == r"\infty":
        return True
    kind, members = _members(gold)
    if kind != "one":
        return all(is_comparable(member) for member in members)
    raise NeedsAlgebra(gold)
