"""Mathematical answers as text: boxes of a completion, a canonical spelling of LaTeX, kinds of answers, their parts.

All functions take time linear in the length of their text. The module imports only its neighbours, because the answer
processes (rewards/answer_process.py) load it alone.
"""

import re
import string
from functools import lru_cache

from rewards.number_text import GROUP_SPACE, NUMBER, plain, plain_decimals

#: number of cached results per text function: a group's answers are compared with one gold answer
CACHED = 4096

# ---- boxes and environments ------------------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:f?boxed|f(?:rame)?box)\s{0,3}(?=\{|[^\s{}\\])")
#: text between two boxes that are one answer together, as in `\boxed{1} and \boxed{2}`
_JOIN = re.compile(
    r"[\s$.]{0,8}(?:,|;|、|和|\\text\{\s?(?:and|or)\s?\}|and|or|&)[\s$,]{0,8}"
    r"(?:and\s|or\s)?(?:[\s$]{0,4}[a-zA-Z]\s?=)?[\s$]{0,8}"
)
_ENVIRONMENT = re.compile(
    # None begins inside another one: a search that began at every one of many openings would take quadratic time.
    r"\$\$(?P<a>[^$]{1,2000})\$\$|(?<!\\)\$(?P<b>(?:\\\$|[^$\n]){1,2000}?)(?<!\\)\$|"
    r"\\\((?P<c>(?:[^\\]|\\[^()]){1,2000}?)\\\)|\\\[(?P<d>(?:[^\\]|\\[^\[\]]){1,2000}?)\\\]"
)


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every `\\boxed{...}` whose braces close, in the order of their ends.

    Of nested boxes only the innermost counts.
    """
    places = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    if not places:
        return []
    closing = _closing_braces(text)
    spans: list[tuple[int, int, str]] = []
    for start, brace in places:
        if text[brace] != "{":
            spans.append((start, brace + 1, text[brace]))  # \boxed 5, as TeX reads it
        elif (end := closing.get(brace)) is not None:
            spans.append((start, end + 1, text[brace + 1 : end]))
    if not spans:
        return []
    later = [start for start, _, _ in spans[1:]] + [len(text)]
    return [box for box, following in zip(spans, later, strict=True) if following >= box[1]]


def _closing_braces(text: str) -> dict[int, int]:
    """The position of the closing brace of every opening one; escaped braces do not count."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closing[opened.pop()] = match.start()
    return closing


def last_box(text: str) -> str | None:
    """The content of the last box of a text, at any place; None without a box."""
    spans = boxes(text)
    return spans[-1][2].strip() if spans else None


def _joined_at_end(text: str, spans: list[tuple[int, int, str]]) -> list[str]:
    """The contents of the last spans that nothing but "and", "or" or a comma separates."""
    run = [spans[-1]]
    for span in reversed(spans[:-1]):
        if not _JOIN.fullmatch(text[span[1] : run[0][0]][:80]) or run[0][0] - span[1] > 60:
            break
        run.insert(0, span)
    return [content for _, _, content in run]


_ANCHOR = re.compile(
    r"(?:(?:answer|result|solution)s?\W{0,4}(?:is|are|was|=|:|equals)\s{0,3}:?|"
    r"(?:答案|结果|結果|答)(?:是|为|為|应为|：|:)+|답은?\s{0,2}:?|답은|ответ\s{0,3}:?|####|therefore,?\s|\bso,?\s)",
    re.IGNORECASE,
)
#: words that deny or bound the number behind them: what follows is not the answer
_NOT_STATED = re.compile(
    r"(?:\bnot|n['’]t|\bcannot|\bnever|\bnor|\bneither|\bexcept|\bthan|\binstead of|\bbetween\s[^.\n]{1,20}\sand|"
    r"\bfrom\s[^.\n]{1,20}\sto|≠|\\ne|不是|不等于)"
    r"(?:\s(?:be|is|equal|equals|to|exactly|the|a|an|number|value|answer)){0,3}[\s$*(]{0,4}$",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(r"[\s$*)]{0,4}(?:is|was|would be)\s(?:not|wrong|incorrect|false)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|。|(?<!\\)[.!?](?=\s|$|\*)")


def answers_in(text: str) -> list[str]:
    """Candidates for the answer of a completion without its reasoning, the most certain first.

    If there is a box: the last one only, with those that "and", "or" or a comma join to it. Otherwise: a text of one
    line, the text after the last "answer is", the number at its beginning, the last mathematical environment, the last
    line and the last number. A number that the text denies or bounds ("not 42", "more than 42") is no candidate.
    """
    if boxed := boxes(text):
        return [", ".join(_joined_at_end(text, boxed))]
    text = text.strip().strip("*_# ")
    candidates = []
    if "\n" not in text and len(text) <= 400:
        candidates.append(text)
    anchor = None
    for anchor in _ANCHOR.finditer(text):  # noqa: B007
        pass
    tail = text[anchor.end() :].strip(" *:\n")[:2000] if anchor else ""
    if tail:
        clause = _SENTENCE_END.split(tail, maxsplit=1)[0]
        candidates.append(clause.strip(" *"))
        if (number := NUMBER.match(spelled(clause).lstrip(" *"))) is not None:
            candidates.append(number[0])
    spans = [
        (m.start(), m.end(), m["a"] or m["b"] or m["c"] or m["d"]) for m in _ENVIRONMENT.finditer(tail or text[-4000:])
    ]
    if spans and _is_stated(tail or text[-4000:], spans[-1][0], spans[-1][1]):
        candidates.append(", ".join(_joined_at_end(tail or text[-4000:], spans)))
    lines = text.rsplit("\n", 1)
    candidates.append(lines[-1].strip(" *"))
    number, end = None, plain(text[-4000:])
    for number in NUMBER.finditer(end):  # noqa: B007
        pass
    candidates.append(number[0] if number and _is_stated(end, number.start(), number.end()) else "")
    return list(dict.fromkeys(candidate for candidate in candidates if re.search(r"[^\W_]|[∞∅]", candidate)))


def _is_stated(text: str, start: int, end: int) -> bool:
    """Whether a text states what stands at a place, and neither denies nor only bounds it."""
    return not _NOT_STATED.search(text[max(0, start - 60) : start]) and not _DENIED_BEHIND.match(text[end : end + 40])


# ---- one spelling ----------------------------------------------------------------------------------------------------

_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "÷": "/", "≤": r"\le ",
    "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "°": r"^\circ ", "±": r"\pm ",
    "∓": r"\mp ", "≈": r"\approx ", "→": r"\to ",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "θ": r"\theta ",
    "λ": r"\lambda ", "μ": r"\mu ", "σ": r"\sigma ",
    "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "、": ",", "，": ",", "。": ".", "；": ";", "：": ":",
    GROUP_SPACE: "",
}  # fmt: skip
_TO_ASCII = str.maketrans(_SYMBOLS)
_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}
_ROOT = re.compile(r"([√∛∜])\s?(?:\(([^()√]{1,100})\)|\{([^{}√]{1,100})\}|(\d+|[a-zA-Z]))")
_SPACING = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits|quad|qquad|hspace\{[^{}]{0,20}\})"
    r"(?![a-zA-Z])\s?|\\[,;:>]|~|\\ "
)
_TEXTUAL = re.compile(
    r"\\(mathrm|textbf|textit|textrm|textsf|texttt|mathbf|mbox|hbox|emph|mathit|mathsf|mathtt|textnormal|operatorname)"
    r"(?![a-zA-Z])\*?\s?(?=\{(?P<inside>(?:[^{}]|\{[^{}]{0,40}\}){0,200}\})?)"
)
#: commands that change how mathematics looks, and what nobody sees; `{...}` behind the first kinds stays
_STYLE = re.compile(
    r"\\(?:color|textcolor)\s?\{[^{}]{1,20}\}|\\(?:underline|uline|boldsymbol|bm|pmb|ensuremath)(?![a-zA-Z])\s?(?=\{)|"
    r"\\(?:bf|rm|it|sf|tt|em|bfseries|boldmath|tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![a-zA-Z])\s?|"
    r"\\(?:[hv]?phantom|label|tag)\*?\s?\{[^{}]{0,40}\}"
)
_LABEL = re.compile(r"^\s?(?:\\text\s?\{[^{}]{0,40}[:：]\s?\}|=)\s?(?=.)", re.DOTALL)
_ALIASES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"\\(?:[dtcsx]|nice|flat)frac(?![a-zA-Z])", r"\\frac"), (r"\\leq(?:slant)?(?![a-zA-Z])", r"\\le "),
    (r"\\geq(?:slant)?(?![a-zA-Z])", r"\\ge "),
    (r"\\neq(?![a-zA-Z])", r"\\ne "), (r"\\lt(?![a-zA-Z])", "<"), (r"\\gt(?![a-zA-Z])", ">"), (r"<=", r"\\le "),
    (r">=", r"\\ge "), (r"!=", r"\\ne "),
    (r"\\degree(?![a-zA-Z])|\{\\circ\}|\\circ(?![a-zA-Z])", r"\\circ"), (r"\^\s?\\circ", r"^\\circ "),
    (r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s?\\\}", r"\\emptyset "),
    ("\x02\\s?\\[[^\\[\\]]{1,10}(?:pt|em|ex|mm|cm)\\]", "\x02"),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"), (r"\\rbrace(?![a-zA-Z])", r"\\}"), (r"\\(?:lbrack)(?![a-zA-Z])", "["),
    (r"\\(?:rbrack)(?![a-zA-Z])", "]"),
    (r"\\(?:ldots|cdots|dots)(?![a-zA-Z])", "..."), (r"\\(?:[bpvBV]|small)matrix(?![a-zA-Z])", r"\\matrix"),
    (r"\{[bpBV]matrix\}", "{pmatrix}"), (r"\\inf(?![a-zA-Z])", r"\\infty "),
    (r"(\w{1,20})\s?\\choose\s?(\w{1,20})", r"\\binom{\1}{\2}"),
    (r"\\frac\s?(\d)\s?(\d)(?!\d)", r"\\frac{\1}{\2}"), (r"\\frac\s?([0-9a-zA-Z])\s?(?=\{)", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]{0,200}\})\s?([0-9a-zA-Z])", r"\1{\2}"),
    (r"\\sqrt\s?([0-9a-zA-Z])", r"\\sqrt{\1}"), (r"(?<![a-zA-Z\\])sqrt\s?\(([^()]{1,100})\)", r"\\sqrt{\1}"),
    (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
    (r"\^\s?\(([^()]{1,40})\)", r"^{\1}"), (r"\*\*", "^"), (r"([_^])\{([0-9a-zA-Z])\}", r"\1\2"),
)]  # fmt: skip
_GAPS = re.compile(r"\s+")
DOLLAR = "\x01"  # a currency sign, while the signs that open and close mathematics are removed


@lru_cache(maxsize=CACHED)
def spelled(text: str) -> str:
    """An answer in the canonical spelling of LaTeX.

    It has no `$`, spacing commands or sizes of brackets, but `\\frac{a}{b}`, ASCII digits and minus signs.
    `\\text{...}` is kept, because it marks words and units.
    """
    text = plain(text)
    text = text.translate(_TO_ASCII) if not text.isascii() else text
    if any(root in text for root in _ROOTS):
        text = _ROOT.sub(lambda m: rf"\sqrt{_ROOTS[m[1]]}{{{m[2] or m[3] or m[4]}}}", text)
    text = plain_decimals(_STYLE.sub("", text) if "\\" in text else text)
    text = (
        re.sub(r"\\!\s?", "", text)
        .replace("{,}", ",")
        .replace("\\$", DOLLAR)
        .replace("\\%", "%")
        .replace("\\\\", "\x02")
    )
    text = re.sub(r"^\s*\$(?=\s?\d[\d.,]*\s*$)", DOLLAR, text)  # $36, alone, is money
    for mark in ("\\(", "\\)", "\\[", "\\]", "$"):
        text = text.replace(mark, " ")
    text = _TEXTUAL.sub(_textual, _SPACING.sub(" ", text))
    for pattern, replacement in _ALIASES:
        text = pattern.sub(replacement, text)
    text = _ungrouped(_LABEL.sub("", _GAPS.sub(" ", text.replace("\x02", "\\\\")).strip()))
    return text[:-1].rstrip() if text.endswith((".", ",", ";")) and not text.endswith("...") else text


def _textual(match: re.Match[str]) -> str:
    """`\\text` in place of a command for words and units; nothing where mathematics is only set in another type."""
    inside = match["inside"] or "\\x"
    is_letter = len(inside) == 2 and inside[0].isalpha() and (match[1] != "mathrm" or inside[0] in "ie")
    return "" if is_letter or re.search(r"\\[a-zA-Z]", inside) else "\\text"


def _ungrouped(text: str) -> str:
    """The text without braces around all of it."""
    for _ in range(4):
        if not (text.startswith("{") and text.endswith("}") and _closing_braces(text).get(0) == len(text) - 1):
            break
        text = text[1:-1].strip()
    return text


_APART = re.compile(r"(?<=\d) (?=\d{1,2}(?!\d)|\d{4})")


@lru_cache(maxsize=CACHED)
def key(text: str) -> str:
    """A key that spellings of one answer have in common: no white space, no braces around single characters.

    Digits that a blank separates stay apart, except in groups of three: 4 2 is not 42, and 1 1/2 is not 11/2.
    """
    return re.sub(r"\{(.)\}", r"\1", _APART.sub(GROUP_SPACE, spelled(text)).replace(" ", ""))


_WRAPPED = re.compile(r"\\text\s?\{([^{}]{0,400})\}")
_QUOTES = "\"'“”‘’`«»„*"


@lru_cache(maxsize=CACHED)
def words_of(text: str) -> str:
    """A text answer for comparison, in lower case.

    `\\text`, quotation marks, braces around the answer and punctuation at its ends are removed.
    """
    text = _WRAPPED.sub(r" \1 ", spelled(text)).replace("\\ ", " ").casefold().translate(str.maketrans("", "", _QUOTES))
    text = _GAPS.sub(" ", text).strip(" .,;:!")
    if len(text) == 3 and text[0] in "([{" and text[2] in ")]}":
        text = text[1]
    return re.sub(r"^(?:the|an?) (?=\S{2})", "", text)


# ---- kinds -----------------------------------------------------------------------------------------------------------

#: names that are mathematics, not words
FUNCTIONS = set(
    "sin cos tan cot sec csc log ln exp sqrt frac max min lim arcsin arccos arctan sinh cosh tanh det gcd lcm mod deg "
    "abs pi and or if is for infty inf".split()
)
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_TIME = re.compile(r"(\d{1,2})\s?:\s?(\d{2})(?:\s?:\s?(\d{2}))?\s{0,3}(?:(a|p)\.?\s?m\.?)?", re.IGNORECASE)


@lru_cache(maxsize=CACHED)
def time_of(text: str) -> tuple[int, int, int, str | None] | None:
    """(hours, minutes, seconds, "a", "p" or None) of a text such as 3:45 p.m., None for anything else."""
    match = _TIME.fullmatch(
        _WRAPPED.sub(r" \1 ", spelled(text)).strip(" .") + ("." if text.rstrip().endswith("m.") else "")
    )
    if not match or int(match[2]) > 59:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0), match[4].lower() if match[4] else None


@lru_cache(maxsize=CACHED)
def is_text(gold: str) -> bool:
    """Whether an answer is words, to be compared as words: `\\text{Evelyn}`, Yes, `\\text{(C)}`, HTHT, 答案."""
    whole = spelled(gold)
    if _WRAPPED.fullmatch(whole):
        return True
    if re.search(r"[=<>^+/]|\\(?!text)[a-zA-Z{]", whole):
        return False
    bare = _COMMAND.sub(" ", _WRAPPED.sub(r" \1 ", whole))
    if any(character.isalpha() and character not in string.ascii_letters for character in bare):
        return True
    words = [word for word in _WORD.findall(bare) if word.lower() not in FUNCTIONS]
    if any(len(word) > 2 for word in words) or len(words) > 1:
        return True
    return bool(words) and not re.search(r"\d", bare) and words[0].istitle()


@lru_cache(maxsize=CACHED)
def is_readable(gold: str) -> bool:
    """Whether an answer is meaningful: its brackets and environments close, and it has a letter, digit or symbol."""
    whole = spelled(gold)
    if not re.search(r"[^\W_]", whole):
        return False
    depth = 0
    for match in re.finditer(r"\\.|[{}]", whole):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth < 0:
            return False
    return depth == 0 and whole.count("\\begin") == whole.count("\\end")


# ---- parts -----------------------------------------------------------------------------------------------------------

_OPEN, _CLOSE = (
    {"(": ")", "[": "]", "\\{": "\\}", "{": "}", "\\langle": "\\rangle", "|": "|"},
    {")", "]", "\\}", "}", "\\rangle"},
)
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|.", re.DOTALL)
_CONJUNCTION = r"(?:and|or|und|oder|et|ou|y|o|и|или|和|或)"
_BETWEEN = re.compile(
    rf"\s(?:and|or|und|oder|et|ou|или)\s|\\text\s?\{{\s?(?:,\s?{_CONJUNCTION}?|{_CONJUNCTION})\s?\}}|"
    r"\\(?:lor|vee|land|wedge)(?![a-zA-Z])|(?<=[\w)}])(?:和|或)(?=[\w(\\])"
)
_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,]\d)")


def split_top(text: str, marks: tuple[str, ...]) -> list[str]:
    """A text split at marks that are not inside brackets."""
    if not any(mark in text for mark in marks):
        return [text]
    parts, depth, begin, before = [], 0, 0, ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPEN and token != "|" or token == "\\begin":
            depth += 1
        elif token in _CLOSE or token == "\\end":
            depth = max(0, depth - 1)
        elif depth == 0 and token in marks and not (token == "=" and before in ("<", ">", "!", ":")):
            parts.append(text[begin : match.start()])
            begin = match.end()
        before = token
    return [*parts, text[begin:]]


def elements(text: str, bracketed: bool = False) -> list[str]:
    """The members of a list: split at commas and semicolons outside brackets, "and" and "or".

    Args:
        bracketed: whether the text was in brackets, where a comma separates groups of digits only if other commas are
            followed by blanks: (0,100) is two numbers.
    """
    text = spelled(text)
    if not bracketed or (", " in text and re.search(r"\d,\d{3}", text)):
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _BETWEEN.sub(" , ", text)
    return [part.strip() for part in split_top(text, (",", ";")) if part.strip()]


def bracketed(text: str) -> tuple[str, str, str] | None:
    """(opening, inner text, closing) of a text inside one pair of brackets, which may be mixed, as in intervals."""
    text = spelled(text)
    first = next((mark for mark in ("(", "[", "\\{", "\\langle") if text.startswith(mark)), None)
    last = next((mark for mark in (")", "]", "\\}", "\\rangle") if text.endswith(mark)), None)
    if first is None or last is None or (first in "([") != (last in ")]"):
        return None
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += 1 if match[0] in _OPEN and match[0] != "|" else -1 if match[0] in _CLOSE else 0
        if depth == 0 and match.end() < len(text):
            return None
    return (first, text[len(first) : -len(last)].strip(), last) if depth == 0 else None
