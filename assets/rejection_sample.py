"""Rejection sampling: sample a policy on training prompts and keep completions with enough reward as demonstrations
(DeepSeek-R1, arXiv 2501.12948, section 2.3.3).

    python assets/rejection_sample.py --config configs/r1/3_rejection.yaml

Each right completion of a prompt is kept once, and at most --per_prompt of them, so that easy prompts do not dominate
the set.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datamodules.prompts import PromptData  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from rewards import Reward, total_reward  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402


def main(
    model: str,
    data: PromptData,
    rewards: list[Reward],
    out: str,
    sampling: SamplingParams,
    samples: int = 4,
    at_least: float = 1.0,
    per_prompt: int = 2,
    prompts: int | None = None,
    batch: int = 64,
    seed: int = 0,
) -> None:
    """Write one line per kept completion, {"prompt", "response", "task"}.

    Args:
        model: folder of the policy.
        data: data module whose training rows are sampled.
        rewards: as in model.rewards.
        out: a .jsonl file.
        sampling: how completions are drawn.
        samples: completions per prompt.
        at_least: smallest total reward of a completion that is kept.
        per_prompt: maximum number of kept completions per prompt.
        prompts: number of rows that are sampled; all if None.
        batch: prompts sampled at once.
        seed: seed of the draws.
    """
    torch.set_num_threads(1)
    sizes = {"samples": samples, "per_prompt": per_prompt, "batch": batch, "prompts": prompts}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1.")
    rows = data.rows("train")[:prompts]
    policy, engine = Policy(PolicyParams(model)), EmbeddedEngine()
    kept: list[dict[str, Any]] = []
    solved_prompts = 0
    for start in range(0, len(rows), batch):
        batch_rows = rows[start : start + batch]
        prompt_ids = [policy.encode(row["prompt"]) for row in batch_rows]
        with isolated_rng("rejection sampling", seed, start), torch.no_grad():
            rollout = engine.generate(policy, prompt_ids, batch_rows, samples, sampling)
        scores = {reward.name: reward(rollout) for reward in rewards}
        total = total_reward(rewards, scores, rollout.failures).tolist()
        for i, row in enumerate(batch_rows):
            places = range(i * samples, (i + 1) * samples)
            # A dict keeps each text once, in order; a total of NaN is never enough.
            right = dict.fromkeys(rollout.completions[j] for j in places if total[j] >= at_least - 1e-6)
            solved_prompts += bool(right)
            for text in list(right)[:per_prompt]:
                kept.append({"prompt": row["prompt"], "response": text, "task": row.get("task")})
    if not kept:
        raise ConfigError(
            f"no completion of {model} earned {at_least} on {len(rows)} prompts, so there are no demonstrations to "
            "write; lower --at_least or raise --samples."
        )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(Path(out), "".join(json.dumps(row) + "\n" for row in kept))
    print(
        f"{len(kept)} completions of {solved_prompts} prompts kept; {len(rows) * samples} completions of {len(rows)} "
        f"prompts were sampled. Written to {out}."
    )


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
