"""The prompts that a model has seen, as fingerprints that travel with it in checkpoints and exported folders."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.errors import ConfigError
from support.files import atomic_write_text, parse_json
from support.prompt_identity import prompt_fingerprints

FILE = "seen_prompts.json"
#: columns that a model reads as its input in rows without a prompt: texts to classify, and triplets
COLUMNS = ("text", "anchor", "positive", "negative")
_LENGTH = 16  # characters of one fingerprint


class SeenPrompts:
    """Fingerprints of the prompts that decided a model's weights or their choice, by where they came from.

    Fields:
        by_source: name of a split, e.g. "the train split of FilePrompts" -> fingerprints of its prompts.
        unknown: names of the models whose prompts are not known, so that nothing can be compared with them.
    """

    def __init__(self) -> None:
        self.by_source: dict[str, set[str]] = {}
        self.unknown: set[str] = set()

    def add(self, source: str, prompts: Iterable[Any]) -> None:
        """Add prompts (texts or chat messages) under this name."""
        if fingerprints := prompt_fingerprints(prompts):
            self.by_source.setdefault(source, set()).update(fingerprints)

    def update(self, other: "SeenPrompts", through: str = "") -> None:
        """Add what another model saw.

        Args:
            through: the model that brings them, for messages; "" for the same model.
        """
        for source, fingerprints in other.by_source.items():
            name = f"{source} (seen by {through})" if through and " (seen by " not in source else source
            self.by_source.setdefault(name, set()).update(fingerprints)
        self.unknown |= other.unknown

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint or a JSON file; the fingerprints of a source are one text."""
        sources = {name: "".join(sorted(prints)) for name, prints in sorted(self.by_source.items())}
        return {"prompts": sources, "unknown": sorted(self.unknown)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "SeenPrompts":
        seen = cls()
        for name, text in dict(state["prompts"]).items():
            seen.by_source[name] = {text[start : start + _LENGTH] for start in range(0, len(text), _LENGTH)}
        seen.unknown = set(state["unknown"])
        return seen

    def save(self, folder: str | Path) -> None:
        """Write them into a model's folder."""
        atomic_write_text(Path(folder) / FILE, json.dumps(self.state_dict(), indent=1))

    @classmethod
    def of_model(cls, folder: str | Path, name: str) -> "SeenPrompts":
        """The prompts that the model in a folder saw; a model without a record, or on the hub, counts as unknown.

        Args:
            folder: the located model.
            name: the model's name in messages.

        Raises:
            ConfigError: the folder's record cannot be read.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            seen = cls()
            seen.unknown.add(name)
            return seen
        try:
            return cls.from_state_dict(parse_json(file.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{file} is not a record of the prompts that a model saw ({error!r}); copy the folder again from the "
                "run that exported it."
            ) from error


def prompts_of_data(data: Any) -> dict[str, list[Any]]:
    """The prompts that a training on this data module sees, by the name of the split.

    They are those of the training and validation rows, of demonstrations and of preference pairs; empty for a data
    module of an unknown kind.
    """
    rows: dict[str, list[Any]] = {}
    if hasattr(data, "rows"):
        rows = {split: data.rows(split) for split in ("train", "val", "demonstration")}
        if getattr(data, "preferences", None) is not None:
            rows["preferences"] = data.preferences.rows()
    elif data is not None:
        rows = {"train": getattr(data, "train_data", []), "val": getattr(data, "val_data", [])}
    named = {f"the {split} split of {type(data).__name__}": part for split, part in rows.items()}
    return {name: [text for row in part for text in _inputs(row)] for name, part in named.items()}


def _inputs(row: dict[str, Any]) -> list[Any]:
    """The prompt of a row; of a row without one, the texts that a classifier or an embedder reads."""
    return [row["prompt"]] if "prompt" in row else [row[column] for column in COLUMNS if column in row]
