"""Sample a policy on training prompts and keep what earns enough, as demonstrations (DeepSeek-R1, arXiv 2501.12948, 2.3.3).

python assets/rejection_sample.py --config configs/r1/3_rejection.yaml

Of a prompt's completions the right ones are kept, each text once and at most --per_prompt of them, so that easy prompts do not fill the set.
"""

import json
import sys
from pathlib import Path

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
    """One line a kept completion, {"prompt", "response", "task"}.

    Args:
        model: the policy's folder. data: whose training rows are sampled. rewards: as in model.rewards.
        out: a .jsonl file.
        samples: completions of a prompt. at_least: total reward that keeps one. per_prompt: most that are kept of a prompt.
        prompts: rows that are sampled; all if None. batch: prompts at once.
    """
    torch.set_num_threads(1)
    for name, value in {
        "samples": samples,
        "per_prompt": per_prompt,
        "batch": batch,
        "prompts": 1 if prompts is None else prompts,
    }.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    rows = data.rows("train")[:prompts]
    policy, engine = Policy(PolicyParams(model)), EmbeddedEngine()
    kept, reached = [], 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        with isolated_rng("rejection sampling", seed, start), torch.no_grad():
            found = engine.generate(policy, [policy.encode(row["prompt"]) for row in part], part, samples, sampling)
        total = total_reward(
            rewards, {reward.name: reward(found) for reward in rewards}, found.failures
        ).tolist()  # NaN is never at_least
        for i, row in enumerate(part):
            right = {
                found.completions[j]: None for j in range(i * samples, (i + 1) * samples) if total[j] >= at_least - 1e-6
            }
            reached += bool(right)
            kept += [
                {"prompt": row["prompt"], "response": text, "task": row.get("task")}
                for text in list(right)[:per_prompt]
            ]
    if not kept:
        raise ConfigError(
            f"no completion of {model} earned {at_least} on {len(rows)} prompts, so nothing can be learned from; lower at_least."
        )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(Path(out), "".join(json.dumps(row) + "\n" for row in kept))
    print(
        f"{len(kept)} completions kept, of {reached} of {len(rows)} prompts ({len(rows) * samples} sampled), written to {out}"
    )


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
