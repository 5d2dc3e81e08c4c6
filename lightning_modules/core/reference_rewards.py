"""Rewards of the initial policy on every training prompt: sampled once before training, then cached for the user."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rollouts import SamplingOverrides, SamplingParams
from support.errors import ConfigError
from support.files import atomic_write_text, cache_folder, fingerprint, parse_json
from support.identity import identity
from support.processes import gathered
from support.seeding import isolated_rng, run_seed

Rows = list[dict[str, Any]]
PROMPTS_AT_ONCE = 64


@dataclass
class Reference:
    """Settings for measuring the initial policy's mean reward.

    Args:
        samples: completions per training prompt (the paper's K).
        sampling: sampling settings that differ from the training's.
        cache: keep the result for other runs with the same weights, prompts, rewards, sampling and seed.
    """

    samples: int = 16
    sampling: SamplingOverrides = field(default_factory=lambda: SamplingOverrides(temperature=0.6, top_p=0.95))
    cache: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"reference.samples is {self.samples}; set it to 1 or more.")


def prompt_key(row: dict[str, Any]) -> str:
    """The key of a prompt's mean: the data row's text and answer. Tokens would not survive decoding."""
    return fingerprint([row["prompt"], row.get("answer")])[:16]


def reference_rewards(
    rows: Rows,
    measure: Callable[[Rows, int, SamplingParams], Tensor],
    *,
    reference: Reference,
    sampling: SamplingParams,
    generator: Any,
    rewards: Any,
) -> dict[str, float]:
    """Mean reward of the current policy by prompt; from the cache if it was measured before.

    Every process samples its part of the prompts. Samples depend on (seed, block of prompts), not on the number of
    processes.

    Args:
        measure: (rows, samples, sampling) -> rewards of shape (rows * samples,), NaN where one could not be scored.
        sampling: sampling settings, with `reference.sampling` applied.
        generator: identity of what generates, with this sampling (lightning_modules/core/generator.py).
        rewards: identity of the rewards and their settings, as plain data.
    """
    distinct = {prompt_key(row): row for row in rows}
    key = fingerprint([generator, fingerprint(map(identity, rows)), reference.samples, run_seed(), rewards])
    path = cache_folder("adapt_think", f"{key}.json")
    # All processes must decide alike, and the file may become visible to some of them first.
    if all(gathered(reference.cache and path.is_file())):
        cached: dict[str, float] = parse_json(path.read_text())
        return cached
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    rank = 0 if is_first else torch.distributed.get_rank()
    processes = len(gathered(None))
    if is_first:
        print(f"Measuring the initial policy: {reference.samples} completions for each of {len(distinct)} prompts")
    keys = list(distinct)
    means: dict[str, float] = {}
    blocks = [keys[start : start + PROMPTS_AT_ONCE] for start in range(0, len(keys), PROMPTS_AT_ONCE)]
    for number in range(rank, len(blocks), processes):
        with isolated_rng("reference rewards", run_seed(), number):
            earned = measure([distinct[key] for key in blocks[number]], reference.samples, sampling)
        by_prompt = earned.view(len(blocks[number]), -1).nanmean(1)  # over the completions that could be scored
        means |= dict(zip(blocks[number], by_prompt.tolist(), strict=True))
    means = {key: value for part in gathered(means) for key, value in part.items()}
    if reference.cache and is_first:
        atomic_write_text(path, json.dumps(means))
    return means
