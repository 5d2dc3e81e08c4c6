"""Checks that the safety split shares no prompt with the training data, or with the data of the models it relies on."""

from collections.abc import Iterable, Mapping
from typing import Any

from support.errors import ConfigError
from support.prompt_identity import normalised, prompt_fingerprints

#: splits that the policy may see: prompts of rollouts and validations, and supervised rows
SEEN = ("train", "val", "demonstration")


def safety_data(trainer: Any, needs_pairs: bool) -> Any:
    """The trainer's data module.

    Args:
        needs_pairs: whether reward or cost models have to be trained.

    Raises:
        ConfigError: it has no safety split, or no preference pairs where they are needed.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None or not hasattr(data, "rows"):
        raise ConfigError(
            "HCRLHF needs a data module with a safety split; use datamodules.RecordsPrompts, datamodules.FilePrompts "
            "or another PromptData."
        )
    if needs_pairs and data.preferences is None:
        raise ConfigError(
            "HCRLHF lacks a reward or cost model, and the data module has no preference pairs to train it; set "
            "data.preferences, or model.reward_model and model.cost_model (or model.rewards and model.cost)."
        )
    return data


def check_splits(data: Any, models: Mapping[str, Iterable[str]]) -> None:
    """Refuse a safety split that is too small or shares a prompt with other data.

    Args:
        data: a data module with train, val, demonstration and safety rows, and perhaps preference pairs.
        models: fingerprints of the prompts that existing models were trained on, by a name for the message.

    Raises:
        ConfigError: with counts and an example.
    """
    safety = [row["prompt"] for row in data.rows("safety")]
    if len(safety) < 2:
        raise ConfigError(
            f"the safety split of {type(data).__name__} has {len(safety)} prompts, but the test needs at least 2; set "
            "data.safety_size."
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
        safety: prompts of the safety split.
        others: prompts of every other split, by name.
        models: fingerprints of prompts by name, where the texts are not available.
    """
    prompts = [normalised(prompt) for prompt in safety]
    kept = set(prompts)
    if len(kept) < len(prompts):
        raise ConfigError(
            f"{len(prompts) - len(kept)} prompts of the safety split are repeated, but the test needs distinct ones; "
            "remove the copies."
        )
    overlaps = {name: kept & {normalised(prompt) for prompt in rows} for name, rows in others.items()}
    for name, seen in (models or {}).items():
        known = set(seen)
        overlaps[name] = {text for text in kept if prompt_fingerprints([text]) & known} if known else set()
    for name, shared in overlaps.items():
        if shared:
            raise ConfigError(
                f"{len(shared)} of {len(prompts)} prompts of the safety split are also in {name}, e.g. "
                f"{min(shared)[:80]!r}, so the test would not be independent of the training. Split the data by prompt."
            )
