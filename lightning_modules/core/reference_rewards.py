"""What the initial policy earns on every training prompt: sampled once before training, kept in the user's cache."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning_modules.core.failure_counts import FailureCounts
from rollouts import SamplingParams
from support.errors import ConfigError
from support.files import atomic_write_text, cache_folder, fingerprint, weights_fingerprint
from support.processes import gathered
from support.seeding import isolated_rng, run_seed

if TYPE_CHECKING:
    from lightning_modules.adapt_think import AdaptThink

PROMPTS_AT_ONCE = 64


@dataclass
class Reference:
    """How the initial policy's mean reward is measured.

    Args:
        samples: completions of every training prompt (the paper's K).
        sampling: how they are drawn; the training's sampling if None.
        cache: keep the result for other runs from the same weights, prompts, sampling and seed.
    """

    samples: int = 16
    sampling: SamplingParams | None = None
    cache: bool = True

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"reference.samples is {self.samples}; it must be at least 1.")


def prompt_key(row: dict[str, Any]) -> str:
    """What a prompt's mean is stored under: the data row's text and answer, not its tokens, which do not survive decoding."""
    return fingerprint([row["prompt"], row.get("answer")])[:16]


def reference_rewards(module: "AdaptThink", rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean reward of the policy as it stands, by prompt; from the cache if it was measured before.

    Every process samples its share; draws depend on (seed, block of prompts), not on the number of processes.
    """
    distinct = {prompt_key(row): row for row in rows}
    sampling = module.reference.sampling or module.sampling
    question = [
        weights_fingerprint(dict(module.policy.weights())),
        fingerprint(distinct),
        asdict(sampling),
        module.reference.samples,
        run_seed(),
        [(type(reward).__qualname__, reward.name, reward.weight) for reward in module.rewards],
    ]
    path = cache_folder("adapt_think", f"{fingerprint(question)}.json")
    # Every process must decide alike, and a file may appear for some of them first.
    if all(gathered(module.reference.cache and path.is_file())):
        known: dict[str, float] = json.loads(path.read_text())
        return known
    if module.trainer.is_global_zero:
        print(
            f"Measuring the initial policy: {module.reference.samples} completions for each of {len(distinct)} prompts",
            flush=True,
        )
    keys = list(distinct)
    found: dict[str, float] = {}
    failures = FailureCounts()
    blocks = [keys[start : start + PROMPTS_AT_ONCE] for start in range(0, len(keys), PROMPTS_AT_ONCE)]
    for number in range(module.global_rank, len(blocks), module.trainer.world_size):
        with isolated_rng("reference rewards", run_seed(), number):
            batch = module.sample([distinct[key] for key in blocks[number]], module.reference.samples, sampling)
            batch.rewards = module.score(batch)
        failures.add(batch)
        means = module.returns(batch).view(len(blocks[number]), -1).nanmean(1)  # over those that could be scored
        found |= dict(zip(blocks[number], means.tolist(), strict=True))
    failures.metrics(module, "the measurement of the initial policy")
    found = {key: value for part in gathered(found) for key, value in part.items()}
    if module.reference.cache and module.trainer.is_global_zero:
        atomic_write_text(path, json.dumps(found))
    return found
