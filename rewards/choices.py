"""Multiple-choice questions: the last letter that a completion states."""

import math
import re
from typing import Any, Literal

from rewards.answers import AnswerReward
from rewards.base import needs
from rewards.math_text import last_box
from rewards.number_text import plain
from rewards.self_check import answers
from rollouts import RolloutBatch
from support.errors import ConfigError

LETTERS = "ABCDEFGHIJ"
#: number of last letters of which one may be the answer, the others denied or words; more would cost seconds
CANDIDATES = 200
# Repetitions are bounded: two that may share white space take quadratic time. A letter of another script next to a
# Latin letter is not part of its word.
_LETTER = r"[\[(*_$\s\"'{]{0,8}([A-Ja-j])(?![A-Za-z0-9_'])"
_WORDS = (
    r"answer|choice|choose|chose|pick|select|option|respuesta|opción|réponse|antwort|risposta|resposta|"
    r"ответ|вариант|答案|选项|選項|选择|選擇|选|選|"
    r"答え|正解|答|정답|답|الإجابة|उत्तर"
)
_LINK = (
    r"is|are|was|would be|must be|should be|to be|es|est|ist|è|é|—|option|choice|letter|therefore|thus|"
    r"是|为|為|應是|应为|应该是|は|은|는"
)
#: from the most to the least certain statement of an answer; within each pattern the last match counts
_STATED = [
    re.compile(r"<answer>\s{0,20}\(?([A-Ja-j])(?![A-Za-z0-9_])"),
    re.compile(rf"(?i:(?<![a-z])(?:{_WORDS}))(?i:s|e)?(?:[^\w(\[{{]{{0,8}}(?i:{_LINK})?){{0,3}}" + _LETTER),
]
_ALONE = re.compile(
    r"(?<![A-Za-z0-9_'])[(\[*]{0,4}([A-J])(?:[)\].:*]{1,4}|(?=\s{0,40}$)|(?![A-Za-z0-9_']))|(?<!\w)\(([a-j])\)"
)
_BOXED = re.compile(
    r"(?:\\(?:text|mathrm|textbf|mathbf)\s?\{)?\s?\(?([A-Ja-j])\)?\s?[.:)]?\s?\}?(?![A-Za-z0-9]).{0,200}", re.DOTALL
)
_SINGLE = re.compile(r"[\s(\[*_\"']{0,8}([A-Ja-j])[\s)\].:*_\"']{0,8}")
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnor|\bneither|\bnever|\bwithout|\bexcept|\binstead of|\brather than|\bover|\bthan|"
    r"\beliminat\w{1,4}|\brul\w{1,4} out|\bexclud\w{1,4}|\breject\w{0,3}|"
    r"\bno|\bnicht|\bpas|\bnon|\bне|不是|不选|不選|非|排除)"
    r"(?:\s{1,3}(?:is|be|the|an?|option|choice|answer|letter|by|with)){0,3}[\s(\[*\"']{0,6}$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"[)\].*\"'\s]{0,6}(?:(?:is|are|was|would be|seems|must be)\s{1,3}"
    r"(?:(?:clearly|definitely|also|obviously|therefore|thus|simply)\s{1,3})?"
    r"(?:not\b|wrong|incorrect|false|out\b|eliminated|excluded|ruled)|"
    r"(?:isn|aren|wasn|can|doesn|won|couldn)'t|cannot|does not|can be (?:ruled|eliminated)|"
    r"不对|不正确|错|是错|不是)",
    re.IGNORECASE,
)
_JOINED = re.compile(
    r"([A-J])[)\].*]{0,3}\s{0,3}(?:,\s{0,3}|/|\bor\b|\band\b|或|和|&|,\s{0,3}or\b){1,2}"
    r"\s{0,3}(?:option|choice)?\s{0,3}[(\[*]{0,3}$",
    re.IGNORECASE,
)


def stated_letters(text: str, options: int = 4) -> list[str]:
    """The capital letters of the answer: one, or several that the completion names together ("A and C").

    Only the first `options` letters count. A letter in a box, in answer tags or after a word such as "answer" or
    "choose" takes precedence over an isolated one. "A" and "I" before a word are words, and a denied letter ("not A",
    "A is wrong") is not an answer.
    """
    text = plain(text).strip()
    allowed = LETTERS[:options]
    if (box := last_box(text)) is not None:
        parts = re.split(r"[,;&]|\band\b|\bor\b", box) if len(box) <= 40 else [box]
        letters = [match[1].upper() for part in parts if (match := _BOXED.fullmatch(part.strip()[:400]))]
        return [letter for letter in dict.fromkeys(letters) if letter in allowed]
    if (match := _SINGLE.fullmatch(text[:40])) and len(text) <= 40:
        return [match[1].upper()] if match[1].upper() in allowed else []
    for pattern in (*_STATED, _ALONE):
        candidates = [match for match in pattern.finditer(text) if _letter(match) in allowed][-CANDIDATES:]
        for match in reversed(candidates):
            if _is_meant(text, match):
                return _together(text, match, allowed)
    return []


def stated_letter(text: str, options: int = 4) -> str | None:
    """The one letter of the answer, see `stated_letters`; None for none or several."""
    letters = stated_letters(text, options)
    return letters[0] if len(letters) == 1 else None


def _letter(match: re.Match[str]) -> str:
    return match[match.lastindex or 1].upper()


def _is_meant(text: str, match: re.Match[str]) -> bool:
    place = match.start(match.lastindex or 1)
    return not (
        _is_word(text, place)
        or _NEGATED.search(text[max(0, place - 60) : place])
        or _DENIED.match(text[place + 1 : place + 81])
    )


def _is_word(text: str, place: int) -> bool:
    """An article or a pronoun: "a", "A" or "I" with nothing around it and a word behind it."""
    return (
        text[place] in "aAiI"
        and text[max(0, place - 1) : place] not in ("(", "[", "*")
        and re.match(r"[ \n]{1,4}[a-z]", text[place + 1 : place + 7]) is not None
        and re.match(r"\s{1,4}(?:and|or|because|since|as|is|not)\b", text[place + 1 : place + 16]) is None
    )


def _together(text: str, match: re.Match[str], allowed: str) -> list[str]:
    """The letter of the match, with those before and after it that "and", "or" or a comma join to it."""
    letters, place = [_letter(match)], match.start(match.lastindex or 1)
    before, end = place, place + 1
    for _ in LETTERS:
        joined = _JOINED.search(text[max(0, before - 40) : before])
        if not joined or joined[1].upper() not in allowed:
            break
        before = max(0, before - 40) + joined.start(1)
        if _is_word(text, before) or _NEGATED.search(text[max(0, before - 60) : before]):
            break
        letters.insert(0, joined[1].upper())
    behind = re.compile(
        r"[)\].*]{0,3}\s{0,3}(?:,|/|\bor\b|\band\b|&){1}\s{0,3}(?:option\s)?[(\[*]{0,3}([A-J])(?![A-Za-z0-9_'])"
    )
    for _ in LETTERS:
        more = behind.match(text, end)
        if not more or more[1] not in allowed or _is_word(text, more.start(1)):
            break
        letters.append(more[1])
        end = more.end(1)
    return list(dict.fromkeys(letters))


class MultipleChoice(AnswerReward):
    """1 if the letter stated after the reasoning is the row's `answer`, else 0; NaN if `answer` is not a letter.

    The answer is a letter, or a number that counts from 0 (as in MMLU); a list contains several accepted answers, see
    `accept`. The number of options is the length of the list `choices`. "A or B" states neither letter.

    Args:
        options: number of options in rows without `choices`.
        accept: for a list: "any" of its letters is right, or "all" must be stated.
        weight, name: as in every reward.
    """

    def __init__(
        self,
        options: int = 4,
        weight: float = 1.0,
        name: str | None = None,
        accept: Literal["any", "all"] = "any",
    ) -> None:
        super().__init__(weight, name, accept)
        if not 2 <= options <= len(LETTERS):
            raise ConfigError(f"MultipleChoice: options is {options}; set it between 2 and {len(LETTERS)}.")
        self.options = options

    def score(self, batch: RolloutBatch) -> list[float]:
        rows = [batch.rows[i] for i in batch.groups.tolist()]
        return [self._one(text, row) for text, row in zip(answers(batch), rows, strict=True)]

    def _one(self, text: str, row: dict[str, Any]) -> float:
        wanted, letters = self._wanted(row), stated_letters(text, self._options(row))
        if not wanted or None in wanted:
            return math.nan
        return float(
            set(letters) == set(wanted) if self.accept == "all" else len(letters) == 1 and letters[0] in wanted
        )

    def gives(self, text: str, gold: str) -> bool:
        return stated_letter(text, len(LETTERS)) == gold

    def extracted(self, batch: RolloutBatch) -> list[str]:
        rows = [batch.rows[i] for i in batch.groups.tolist()]
        return [
            " ".join(stated_letters(text, self._options(row))) for text, row in zip(answers(batch), rows, strict=True)
        ]

    def gold(self, row: dict[str, Any]) -> str | None:
        letters = [letter for letter in self._wanted(row) if letter is not None]
        return (", ".join(letters) if self.accept == "all" else letters[0]) if letters else None

    def _options(self, row: dict[str, Any]) -> int:
        return len(row["choices"]) if row.get("choices") else self.options

    def _wanted(self, row: dict[str, Any]) -> list[str | None]:
        answer = row.get("answer")
        listed = answer if isinstance(answer, (list, tuple)) else [answer]
        return [self._letter_of(one, LETTERS[: self._options(row)]) for one in listed if one is not None]

    @staticmethod
    def _letter_of(answer: Any, allowed: str) -> str | None:
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        if isinstance(answer, int) and not isinstance(answer, bool):
            return allowed[answer] if 0 <= answer < len(allowed) else None
        letter = plain(str(answer)).strip().strip("().").upper()
        return letter if len(letter) == 1 and letter in allowed else None

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer")
        if self._options(row) > len(LETTERS) or not (wanted := self._wanted(row)) or None in wanted:
            raise ConfigError(
                f"the reward {self.name!r} (MultipleChoice): the answer of row {row.get('id')!r} is {row['answer']!r}, "
                f"which is neither a letter of {self._options(row)} choices (at most {len(LETTERS)}) nor their number "
                "from 0; correct the row, or set `options`."
            )
