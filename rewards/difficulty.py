"""A model as judge of a question's difficulty: MASJ (arXiv 2503.01688)."""

import re
from typing import Any, Literal

from rewards.base import Failure
from rewards.judge import HTTPJudge
from rollouts import RolloutBatch

#: difficulty of every level of education that a verdict may name
LEVELS = {
    "high school": 0.1, "undergraduate": 0.3, "graduate": 0.5, "postgraduate": 0.7, "expert": 0.9,
}  # fmt: skip
SCALES = {
    "number": "a number from 0 (anybody can answer it) to 1 (only few experts can)",
    "education": f"the education that it takes: {', '.join(LEVELS)}",
}
INSTRUCTION = (
    "Rate how difficult this question is. First explain what it takes to answer it, then end with your rating in "
    "double square brackets, such as [[{example}]]. The rating is {scale}.\n\n{question}"
)
_VERDICT = re.compile(r"\[\[([^\[\]]{1,40})\]\]")


class DifficultyJudge(HTTPJudge):
    """The difficulty of the rows' questions, 0 to 1, as a model rates them; the completions are not shown to it.

    The endpoint replies to POST {"prompts": [...]} with {"texts": [...]}. The last rating in double brackets counts. A
    reply without one, or with another level than `LEVELS` has, is a failure of that question, never a difficulty of 0.

    Args:
        url: URL of the endpoint.
        scale: number for 0 to 1, education for the paper's levels.
        kwargs: as of `HTTPJudge`.
    """

    def __init__(self, url: str, *, scale: Literal["number", "education"] = "number", **kwargs: Any) -> None:
        super().__init__(url, **({"name": "difficulty_judge"} | kwargs))
        self.scale = scale

    def score(self, batch: RolloutBatch) -> list[float | Failure]:
        example = "0.4" if self.scale == "number" else "undergraduate"
        questions = [
            INSTRUCTION.format(example=example, scale=SCALES[self.scale], question=_question(row))
            for row in (batch.rows[place] for place in batch.groups.tolist())
        ]
        payload = {"prompts": questions} | {column: batch.column(column) for column in self.columns}
        return self.replies(payload, "texts", self.rating)

    def rating(self, text: object) -> float | Failure:
        """The rating in a reply."""
        verdicts = _VERDICT.findall(text) if isinstance(text, str) else []
        if not verdicts:
            return Failure("error", f"the reply {str(text)[-60:]!r} has no rating in double square brackets")
        verdict = verdicts[-1].strip().lower()
        if self.scale == "education":
            level = LEVELS.get(verdict)
            return Failure("error", f"the level {verdict!r} is not one of {list(LEVELS)}") if level is None else level
        try:
            number = float(verdict)
        except ValueError:
            return Failure("error", f"the rating {verdict!r} is not a number")
        return number if 0 <= number <= 1 else Failure("error", f"the rating {verdict!r} is not between 0 and 1")


def _question(row: dict[str, Any]) -> str:
    """The question with its options, or the prompt of a row without them."""
    if not row.get("question"):
        prompt = row["prompt"]
        return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return "\n".join([str(row["question"]), *(f"- {choice}" for choice in row.get("choices") or [])])
