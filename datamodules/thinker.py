"""Demonstrations of Thinker's dialogue on sums, for the supervised start of its miniature (arXiv 2505.21097)."""

import random
import re
from typing import Any

from datamodules.arithmetic import SLIP_BY_LEVEL, problem, trace
from datamodules.demonstrations import Demonstrations
from datamodules.self_verify import check
from support.errors import ConfigError
from support.seeding import derive_seed


def turn_prompt(template: str, **values: object) -> str:
    """A turn's prompt with its placeholders (<problem>, <answer>, <budget>) replaced, in one pass."""
    return re.sub(r"<(problem|answer|budget)>", lambda mark: str(values.get(mark[1], mark[0])), template)


class ThinkerDemonstrations(Demonstrations):
    """Sums in four turns: a fast answer, a check of it by digits, worked columns, a summary.

    The fast answer is given at once and often wrong; a wrong one is context and not learned. A part of the verdicts is
    random, and the columns have slips, so that all turns can be improved.

    Args:
        batch_size, train_size, val_size, seed: as in `Demonstrations`.
        verify, slow, summary: prompts of these turns, as in `environments.TurnPrompts`.
        direct: fraction of fast answers without worked columns.
        blind: fraction of verdicts that are random.
        levels: numbers of digits.
    """

    def __init__(
        self,
        batch_size: int = 64,
        train_size: int = 20_000,
        val_size: int = 256,
        verify: str = "<problem> <answer>. Right?",
        slow: str = "Wrong. <problem>",
        summary: str = "In short?",
        direct: float = 0.8,
        blind: float = 0.5,
        levels: list[int] | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__("thinker", batch_size, train_size, val_size, seed=seed)
        self.verify, self.slow, self.summary = verify, slow, summary
        self.direct, self.blind, self.levels = direct, blind, levels or [2, 3, 4, 5]
        if not set(self.levels) <= set(SLIP_BY_LEVEL) or not 0 <= direct <= 1 or not 0 <= blind <= 1:
            raise ConfigError(
                f"data.levels is {self.levels}, data.direct {direct} and data.blind {blind}; levels are numbers of "
                f"digits up to {max(SLIP_BY_LEVEL)}, the fractions between 0 and 1."
            )

    def dialogue(self, row: dict[str, Any], rng: random.Random) -> list[dict[str, Any]]:
        """The turns of one problem, under transitions by truth."""
        a, b = map(int, row["prompt"][:-2].split("+"))
        truth, slip = row["answer"], SLIP_BY_LEVEL[row["level"]]
        wrong = truth
        while wrong == truth:
            _, wrong = trace(a, b, rng, 0.4)
        is_direct, is_right = rng.random() < self.direct, rng.random() < 0.5
        steps, worked = trace(a, b, rng, slip)
        fast = (truth if is_right else wrong) if is_direct else worked
        is_right = fast == truth
        said = f"</think>{fast}" if is_direct else f"{steps}</think>{fast}"
        turns: list[dict[str, Any]] = [
            {"role": "assistant", "content": said, "learned": is_right or not is_direct},
            self._asked(self.verify, row, fast),
            {"role": "assistant", "content": self._verdict(a, b, fast, rng)},
        ]
        if not is_right:
            steps, slow = trace(a, b, rng, slip)
            turns += [
                self._asked(self.slow, row, fast),
                {"role": "assistant", "content": f"{steps}</think>{slow}"},
                self._asked(self.summary, row, slow),
                {"role": "assistant", "content": f"</think>{slow}"},
            ]
        return turns

    def _asked(self, template: str, row: dict[str, Any], answer: str) -> dict[str, Any]:
        return {"role": "user", "content": turn_prompt(template, problem=row["prompt"], answer=answer)}

    def _verdict(self, a: int, b: int, proposed: str, rng: random.Random) -> str:
        steps, computed = trace(a, b, rng, SLIP_BY_LEVEL[len(str(a))])
        checked, agrees = check(steps, len(computed) > len(str(a)), proposed)
        verdict = rng.random() < 0.5 if rng.random() < self.blind else agrees
        return f"{checked}</think>{'Yes' if verdict else 'No'}"

    def setup(self, stage: str) -> None:
        rng = random.Random(derive_seed("thinker demonstrations", self.seed))
        rows = []
        for index in range(self.train_size + self.val_size):
            row = problem(self.levels[index % len(self.levels)], rng, held_out=False)
            rows.append(row | {"response": self.dialogue(row, rng)})
        self.train_data, self.val_data = rows[self.val_size :], rows[: self.val_size]
