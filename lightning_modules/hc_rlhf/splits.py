"""The safety split shares no prompt with anything that training, or the models that it relies on, ever saw."""

from collections.abc import Iterable, Mapping
from typing import Any

from support.errors import ConfigError
from support.prompt_identity import normalised, prompt_fingerprints

#: what the policy may see: its rollouts, validations and supervised rows
SEEN = ("train", "val", "demonstration")


def safety_data(trainer: Any, needs_pairs: bool) -> Any:
    """The trainer's data module. Raises ConfigError if it cannot serve a safety test, or lacks pairs that models must be trained on."""
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "rows"):
        raise ConfigError(
            "HCRLHF needs a data module with a safety split: datamodules.RecordsPrompts, datamodules.FilePrompts or another PromptData."
        )
    if needs_pairs and data.preferences is None:
        raise ConfigError(
            "HCRLHF has no reward or cost model and the data module no preference pairs to train them on; set data.preferences, or "
            "model.reward_model and model.cost_model (or model.rewards and model.cost)."
        )
    return data


def check_splits(data: Any, models: Mapping[str, Iterable[str]]) -> None:
    """Refuse a safety split that is too small or shares a prompt with what was seen. Raises ConfigError with counts and an example.

    Args:
        data: a data module with train, val, demonstration and safety rows, and perhaps preference pairs.
        models: fingerprints of the prompts that given models were trained on, by a name for the message.
    """
    safety = [row["prompt"] for row in data.rows("safety")]
    if len(safety) < 2:
        raise ConfigError(
            f"the safety split of {type(data).__name__} has {len(safety)} prompts; the test needs at least 2. Set data.safety_size."
        )
    others = {f"the {name} split": [row["prompt"] for row in data.rows(name)] for name in SEEN}
    if data.preferences is not None:
        others["the preference pairs"] = [row["prompt"] for row in data.preferences.rows()]
    check_disjoint(safety, others, models)


def check_disjoint(
    safety: Iterable[Any], others: Mapping[str, Iterable[Any]], models: Mapping[str, Iterable[str]] | None = None
) -> None:
    """Refuse a safety split that shares a prompt, or repeats one. Raises ConfigError with the counts.

    Args:
        safety: its prompts. others: prompts of every other split, by name.
        models: fingerprints of prompts, by name, where the texts are not at hand.
    """
    prompts = [normalised(prompt) for prompt in safety]
    kept = set(prompts)
    if len(kept) < len(prompts):
        raise ConfigError(
            f"{len(prompts) - len(kept)} prompts of the safety split are repeated; the test needs distinct ones. Drop the copies."
        )
    overlaps = {name: kept & {normalised(prompt) for prompt in rows} for name, rows in others.items()}
    for name, seen in (models or {}).items():
        known = set(seen)
        overlaps[name] = {text for text in kept if prompt_fingerprints([text]) & known} if known else set()
    for name, shared in overlaps.items():
        if shared:
            raise ConfigError(
                f"{len(shared)} of {len(prompts)} prompts of the safety split are also in {name}, e.g. {min(shared)[:80]!r}; the test would not be independent of "
                "training. Split the data by prompt."
            )
