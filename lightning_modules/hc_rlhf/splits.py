"""Checks that the safety split shares no prompt with the training data, or with the data of the models it relies on."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from support.errors import ConfigError
from support.prompt_identity import known_fingerprints, normalised
from support.seen_prompts import SeenPrompts

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


def check_splits(data: Any, seen: SeenPrompts) -> None:
    """Refuse a safety split that is too small or shares a prompt with other data.

    Args:
        data: a data module with train, val, demonstration and safety rows, and perhaps preference pairs.
        seen: fingerprints of the prompts that the policy, its start and its scorers saw.

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
    check_disjoint(safety, others, seen.by_source)


def check_disjoint(
    safety: Iterable[Any], others: Mapping[str, Iterable[Any]], seen: Mapping[str, Set[str]] | None = None
) -> None:
    """Refuse a safety split that shares a prompt, or repeats one. Raises ConfigError with the counts.

    Args:
        safety: prompts of the safety split.
        others: prompts of every other split, by name.
        seen: fingerprints of prompts by name, where the texts are not available.
    """
    safety = list(safety)
    prompts = [normalised(prompt) for prompt in safety]
    kept = set(prompts)
    if len(kept) < len(prompts):
        raise ConfigError(
            f"{len(prompts) - len(kept)} prompts of the safety split are repeated, but the test needs distinct ones; "
            "remove the copies."
        )
    overlaps = {name: kept & {normalised(prompt) for prompt in rows} for name, rows in others.items()}
    fingerprints = {text: known_fingerprints([prompt]) for text, prompt in zip(prompts, safety, strict=True)}
    for name, known in (seen or {}).items():
        overlaps.setdefault(name, set()).update(text for text in kept if fingerprints[text] & known)
    for name, shared in overlaps.items():
        if shared:
            raise ConfigError(
                f"{len(shared)} of {len(prompts)} prompts of the safety split are also in {name}, e.g. "
                f"{min(shared)[:80]!r}, so the test would not be independent of the training. Split the data by prompt "
                "and test with the data settings of the training (data.safety_size, data.seed)."
            )
