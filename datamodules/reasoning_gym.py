"""Prompt groups from reasoning-gym: about a hundred procedural tasks, any one or any mix by name."""

import json
from typing import Any

from datamodules.prompts import PromptData
from support.errors import ConfigError
from support.seeding import derive_seed

INSTRUCTION = "Put your final answer between <answer> and </answer>."


class ReasoningGymPrompts(PromptData):
    """Questions of reasoning-gym's tasks. The column `entry` carries what its scorer needs (`rewards.ReasoningGymScore`).

    Args:
        tasks: task name -> its settings, e.g. {gsm_symbolic: {}, chain_sum: {min_terms: 2, max_terms: 3}}; drawn evenly.
        train_size, val_size: questions in all; the held-out ones come from other seeds and repeat no training question.
        instruction: added to every question; "" for none.
        seed: of the questions and of their order.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any] | None],
        train_size: int = 2000,
        val_size: int = 100,
        instruction: str = INSTRUCTION,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed=seed)
        if not tasks:
            raise ConfigError("data.tasks is empty; name at least one reasoning-gym task, e.g. {chain_sum: {}}.")
        self.tasks, self.instruction = tasks, instruction
        self.train_size, self.val_size = train_size, val_size
        self._check_names()

    def _check_names(self) -> None:
        import difflib

        from reasoning_gym.factory import DATASETS

        for name in self.tasks:
            if name not in DATASETS:
                near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4)
                raise ConfigError(
                    f"data.tasks names {name!r}, which reasoning-gym does not have. Did you mean {', '.join(near) or 'one of ' + ', '.join(sorted(DATASETS))}?"
                )

    def _draw(self, split: str, count: int) -> list[dict[str, Any]]:
        import reasoning_gym

        rows = []
        names = sorted(self.tasks)
        for number, name in enumerate(names):
            share = count // len(names) + (number < count % len(names))
            if not share:
                continue
            seed = derive_seed("reasoning gym", split, self.seed, name) % 2**31
            try:
                questions = reasoning_gym.create_dataset(name, size=share, seed=seed, **(self.tasks[name] or {}))
            except (TypeError, AssertionError, ValueError) as error:
                raise ConfigError(f"reasoning-gym refuses the settings {self.tasks[name]} of {name!r}: {error}") from error
            for i, entry in enumerate(questions):
                prompt = f"{entry['question']}\n\n{self.instruction}".strip()
                rows.append(
                    {
                        "id": f"{name}-{split}-{i}",
                        "prompt": prompt,
                        "answer": str(entry["answer"]),
                        "task": name,
                        "entry": json.dumps(entry, default=str),
                    }
                )
        return rows

    def train_rows(self):
        held_out = {row["prompt"] for row in self.rows("val")}
        kept = [row for row in self._draw("train", self.train_size) if row["prompt"] not in held_out]
        if not kept:
            raise ConfigError(
                f"every question of {sorted(self.tasks)} is held out; these settings make too few distinct ones. Raise their range."
            )
        return kept

    def val_rows(self):
        return self._draw("val", self.val_size)
