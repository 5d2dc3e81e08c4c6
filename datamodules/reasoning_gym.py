"""Prompt groups from reasoning-gym: about a hundred procedural tasks, any one or any mix by name."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

from datamodules.arithmetic import is_held_out
from datamodules.prompts import PromptData
from datamodules.rows import Row
from support.errors import ConfigError
from support.seeding import derive_seed

INSTRUCTION = "Put your final answer between <answer> and </answer>."


class ReasoningGymPrompts(PromptData):
    """Questions of reasoning-gym's tasks. The column `entry` holds what its scorer (`rewards.ReasoningGymScore`) needs.

    Args:
        tasks: task name -> its settings, e.g. {gsm_symbolic: {}, chain_sum: {min_terms: 2, max_terms: 3}}; tasks are
            drawn evenly.
        train_size, val_size: total numbers of questions; the held-out ones come from other seeds and repeat no training
            question.
        instruction: text after every question; "" for none.
        seed: seed of the questions and of their order; the run's seed if None.
        curriculum_levels: levels of the tasks' own curricula, e.g. [0, 1, 2], drawn evenly; the attributes of a level
            override those in `tasks`. Rows then have `level`, and `task` is <name>-<level>. Each level has only its own
            range of difficulty (reasoning-gym's "upper bound"); easier questions come from the levels below.
        held_out_by: criterion of held-out questions: another seed (and no training question has the same text), or a
            hash of the text, which also separates them from questions made elsewhere, such as `Demonstrations` of these
            tasks.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any] | None],
        train_size: int = 2000,
        val_size: int = 100,
        instruction: str = INSTRUCTION,
        seed: int | None = None,
        curriculum_levels: list[int] | None = None,
        held_out_by: Literal["seed", "hash"] = "seed",
    ) -> None:
        super().__init__(seed=seed)
        if not tasks:
            raise ConfigError("data.tasks is empty; set at least one reasoning-gym task, e.g. {chain_sum: {}}.")
        self.tasks, self.instruction, self.curriculum_levels = tasks, instruction, curriculum_levels
        self.train_size, self.val_size, self.held_out_by = train_size, val_size, held_out_by
        self._check_names()
        self._check_levels()

    def _check_names(self) -> None:
        import difflib

        from reasoning_gym.factory import DATASETS

        for name in self.tasks:
            if name not in DATASETS:
                similar = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4)
                suggestion = ", ".join(similar) or "one of " + ", ".join(sorted(DATASETS))
                raise ConfigError(
                    f"data.tasks has {name!r}, which is not a reasoning-gym task. Did you mean {suggestion}?"
                )

    def _check_levels(self) -> None:
        from reasoning_gym.factory import create_curriculum, has_curriculum

        if self.curriculum_levels is None:
            return
        levels = self.curriculum_levels
        if not levels or min(levels) < 0 or len(set(levels)) < len(levels):
            raise ConfigError(
                f"data.curriculum_levels is {levels}; it must be a list of different integers, each 0 or above."
            )
        for name in self.tasks:
            if not has_curriculum(name):
                raise ConfigError(
                    f"data.curriculum_levels is {levels}, but reasoning-gym has no curriculum for {name!r}; remove "
                    "this task from data.tasks, or unset data.curriculum_levels."
                )
            highest = max((len(a.levels) for a in create_curriculum(name).attributes.values()), default=1) - 1
            if max(levels) > highest:  # reasoning-gym would repeat the highest level under another number
                raise ConfigError(
                    f"data.curriculum_levels is {levels}, but the levels of {name!r} end at {highest}; remove the "
                    "levels above it."
                )

    def _questions(self, name: str, level: int | None, size: int, seed: int) -> Any:
        """A task's data set of questions, at a level of its curriculum unless the level is None."""
        import reasoning_gym
        from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
        from reasoning_gym.factory import DATASETS, create_curriculum

        settings = self.tasks[name] or {}
        try:
            if level is None:
                return reasoning_gym.create_dataset(name, size=size, seed=seed, **settings)
            curriculum = create_curriculum(name)
            curriculum.set_global_level(level)
            one_level = DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
            config = curriculum.generate_configuration(settings | {"size": size, "seed": seed}, one_level)
            if hasattr(config, "validate"):
                config.validate()
            return DATASETS[name][0](config=config)
        except (TypeError, AssertionError, ValueError) as error:
            where = "" if level is None else f" at curriculum level {level}"
            raise ConfigError(
                f"reasoning-gym refuses the settings {self.tasks[name]} of {name!r}{where}: {error}. Correct them in "
                "data.tasks."
            ) from error

    def _entries(self, name: str, level: int | None, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
        """`count` entries of a task for a split."""
        if self.held_out_by == "seed":
            return iter(self._questions(name, level, count, seed))
        # The questions are generated lazily; one in five is held out.
        candidates = self._questions(name, level, 40 * count + 100, seed)
        return islice((entry for entry in candidates if is_held_out(entry["question"]) == (split == "val")), count)

    def _draw(self, split: str, count: int) -> list[dict[str, Any]]:
        rows = []
        levels: list[int] | list[None] = self.curriculum_levels or [None]
        kinds = [(name, level) for name in sorted(self.tasks) for level in levels]
        for number, (name, level) in enumerate(kinds):
            kind_count = count // len(kinds) + (number < count % len(kinds))
            if not kind_count:
                continue
            label = name if level is None else f"{name}-{level}"
            seed = derive_seed("reasoning gym", split, self.seed, label) % 2**31
            for i, entry in enumerate(self._entries(name, level, split, kind_count, seed)):
                row = {
                    "id": f"{label}-{split}-{i}",
                    "prompt": f"{entry['question']}\n\n{self.instruction}".strip(),
                    "answer": str(entry["answer"]),
                    "task": label,
                    "entry": json.dumps(entry, default=str),
                }
                rows.append(row if level is None else row | {"level": level})
        return rows

    def train_rows(self) -> list[Row]:
        held_out = {row["prompt"] for row in self.rows("val")}
        rows = [row for row in self._draw("train", self.train_size) if row["prompt"] not in held_out]
        if not rows:
            raise ConfigError(
                f"every question of {sorted(self.tasks)} is held out, because these settings make too few different "
                "questions; widen their ranges in data.tasks."
            )
        return rows

    def val_rows(self) -> list[Row]:
        return self._draw("val", self.val_size)
