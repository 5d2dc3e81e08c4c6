"""Multiple-choice questions: the last letter that a completion states."""

import re
from typing import Any

from rewards.answers import answers
from rewards.base import Reward, needs
from rollouts import RolloutBatch
from support.errors import ConfigError

LETTERS = "ABCDEFGHIJ"
# Bounded, because two repetitions that may share white space take quadratic time.
_LETTER = r"[\[(*_$\s\"']{0,20}([A-Ja-j])\b(?!['’])"
#: in falling order of how surely a letter is meant as the answer; within each the last one counts
_STATED = [
    re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|mathrm|textbf)\s*\{)?\s*\(?([A-Ja-j])\)?\s*\.?\s*\}"),
    re.compile(r"<answer>\s*\(?([A-Ja-j])\b"),
    re.compile(
        r"(?i:\banswer|\bchoice|\boption)s?\W{0,40}(?i:is|would be|must be|should be|to be)?\W{0,4}?(?i:option|choice)?"
        + _LETTER
    ),
]
_ALONE = re.compile(r"(?<![\w'’])[(\[*]*([A-J])(?:[)\].:*]+|(?=\s*$)|(?![\w'’]))")


def stated_letter(text: str, options: int = 4) -> str | None:
    """The letter of the answer, as a capital; None if none of the first `options` letters is stated.

    A letter in a box, in answer tags or after "answer", "choice" or "option" goes before one that merely stands alone. "A" and "I" before a word are words.
    """
    allowed = LETTERS[:options]
    for pattern in _STATED:
        found = [m for m in pattern.finditer(text) if m[1].upper() in allowed and not _is_word(text, m)]
        if found:
            return found[-1][1].upper()
    found = [m for m in _ALONE.finditer(text) if m[1] in allowed and not _is_word(text, m)]
    return found[-1][1] if found else None


def _is_word(text: str, match: re.Match[str]) -> bool:
    """An article or a pronoun: "a", "A" or "I" with nothing around it and a word behind it."""
    return (
        match[1] in "aAiI"
        and text[match.end(1) - 2 : match.end(1) - 1] not in ("(", "[", "*")
        and re.match(r"[ \n]+[a-z]", text[match.end(1) :]) is not None
    )


class MultipleChoice(Reward):
    """1 if the last letter stated after the reasoning is the row's `answer`, else 0.

    The answer is a letter, or a number that counts from 0 (as in MMLU). `choices`, a list, tells how many there are.

    Args:
        options: how many there are in rows without `choices`.
        weight, name: as in every reward.
    """

    is_correctness = True

    def __init__(self, options: int = 4, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if not 2 <= options <= len(LETTERS):
            raise ConfigError(f"MultipleChoice: options is {options}; it must lie between 2 and {len(LETTERS)}.")
        self.options = options

    def score(self, batch: RolloutBatch) -> list[float]:
        rows = [batch.rows[i] for i in batch.groups.tolist()]
        found = [stated_letter(text, self._options(row)) for text, row in zip(answers(batch), rows, strict=True)]
        return [
            float(letter is not None and letter == self._wanted(row)) for letter, row in zip(found, rows, strict=True)
        ]

    def _options(self, row: dict[str, Any]) -> int:
        return len(row["choices"]) if row.get("choices") else self.options

    def _wanted(self, row: dict[str, Any]) -> str | None:
        answer, allowed = row["answer"], LETTERS[: self._options(row)]
        if isinstance(answer, int) and not isinstance(answer, bool):
            return allowed[answer] if 0 <= answer < len(allowed) else None
        letter = str(answer).strip().strip("().").upper()
        return letter if len(letter) == 1 and letter in allowed else None

    def check_columns(self, row: dict[str, Any]) -> None:
        needs(self, row, "answer")
        if self._options(row) > len(LETTERS) or self._wanted(row) is None:
            raise ConfigError(
                f"the reward {self.name!r} (MultipleChoice): the answer of row {row.get('id')!r} is {row['answer']!r}, which is no letter of {self._options(row)} choices "
                f"(at most {len(LETTERS)}), nor their number from 0; mend the row, or set options."
            )
