"""Rejection sampling: sample a policy on training prompts and keep completions with enough reward as demonstrations
(DeepSeek-R1, arXiv 2501.12948, section 2.3.3).

    python assets/rejection_sample.py --config configs/r1/3_rejection.yaml

Each right completion of a prompt is kept once, and at most --per_prompt of them, so that easy prompts do not dominate
the set.

With an environment, responses are lists of turns, of which SFT does not learn what the environment said.
Hint-engineering (CoRT, arXiv 2506.09820) inserts cues into completions, which the policy then goes on with and learns
to write itself:

    python assets/rejection_sample.py --config configs/cort/1_hints.yaml
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datamodules.prompts import PromptData  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from policies.prompt_encoding import encode_content  # noqa: E402
from rewards import Reward, total_reward  # noqa: E402
from rollouts import EmbeddedEngine, Environment, RolloutBatch, SamplingParams  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402


@dataclass
class Cues:
    """Texts that are inserted into completions, as if the policy had written them.

    Args:
        start: at the beginning of every completion (CoRT's prompt hint).
        onset: a regular expression; where a completion first matches it, its rest is replaced by the cue `at_onset` and
            what the policy writes behind it. Such a place is the onset of tedious work by hand.
        at_onset: the cue.
    """

    start: str = ""
    onset: str = ""
    at_onset: str = ""

    def __post_init__(self) -> None:
        if bool(self.onset) != bool(self.at_onset):
            raise ConfigError(
                f"cues.onset is {self.onset!r} and cues.at_onset {self.at_onset!r}; set both, or neither."
            )
        try:
            re.compile(self.onset)
        except re.error as error:
            raise ConfigError(f"cues.onset {self.onset!r} is not a regular expression: {error}; correct it.") from error


def sampled(
    policy: Policy,
    rows: list[dict[str, Any]],
    samples: int,
    sampling: SamplingParams,
    environment: Environment | None,
    cues: Cues,
) -> RolloutBatch:
    """Completions of the rows with the cues in them."""
    engine, prompts = EmbeddedEngine(), [policy.encode(row["prompt"]) for row in rows]
    start = encode_content(policy.tokenizer, cues.start)

    def generated(forced: list[list[int]]) -> RolloutBatch:
        return engine.generate(policy, prompts, rows, samples, sampling, forced, environment=environment)

    rollout = generated([start] * (len(rows) * samples))
    if not cues.onset:
        return rollout
    forced = []
    for first, *_ in rollout.turn_texts:
        place = re.search(cues.onset, first)
        forced.append(
            start if place is None else encode_content(policy.tokenizer, first[: place.start()] + cues.at_onset)
        )
    return generated(forced)


def environment_texts(rollout: RolloutBatch) -> list[list[str]]:
    """The texts of the environment between each row's turns: one less than the row has turns."""
    assert rollout.turns is not None and rollout.decoder is not None
    number, counts = rollout.turns.number, rollout.turns.counts.tolist()
    between, latest = rollout.completion_mask & (number < 0), number.cummax(1).values
    decoded = [rollout.decoder(rollout.completion_ids, between & (latest == turn)) for turn in range(max(counts) - 1)]
    return [[texts[row] for texts in decoded[: count - 1]] for row, count in enumerate(counts)]


def responses(rollout: RolloutBatch, environment: Environment | None) -> list[Any]:
    """The response of each completion for SFT: its text, or its turns if an environment took part.

    Raises:
        ConfigError: the environment replied with messages, which cannot be told from the chat template's text.
    """
    if rollout.turns is None:
        return list(rollout.completions)
    if rollout.turns.message_start.any():
        raise ConfigError(
            f"{type(environment).__name__} replied with messages, which are not kept as demonstrations; use one that "
            "replies with texts, such as ToolEnvironment with CodeFence."
        )
    cue = getattr(getattr(environment, "calls", None), "cue", "")
    listed = []
    for written, between in zip(rollout.turn_texts, environment_texts(rollout), strict=True):
        turns = [{"role": "assistant", "content": written[0]}]
        for output, text in zip(between, written[1:], strict=True):
            is_cued = bool(cue) and output.endswith(cue)
            turns.append({"role": "output", "content": output.removesuffix(cue) if is_cued else output})
            turns.append({"role": "assistant", "content": cue * is_cued + text})
        listed.append(turns)
    return listed


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
    environment: Environment | None = None,
    cues: Cues | None = None,
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
        environment: as model.environment; what it says is part of the responses, and not learned.
        cues: texts that are inserted into completions.
    """
    torch.set_num_threads(1)
    sizes = {"samples": samples, "per_prompt": per_prompt, "batch": batch, "prompts": prompts}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1.")
    rows = data.rows("train")[:prompts]
    policy = Policy(PolicyParams(model))
    kept: list[dict[str, Any]] = []
    solved_prompts = 0
    for start in range(0, len(rows), batch):
        batch_rows = rows[start : start + batch]
        with isolated_rng("rejection sampling", seed, start), torch.no_grad():
            rollout = sampled(policy, batch_rows, samples, sampling, environment, cues or Cues())
        texts = responses(rollout, environment)
        scores = {reward.name: reward(rollout) for reward in rewards}
        total = total_reward(rewards, scores, rollout.failures).tolist()
        for i, row in enumerate(batch_rows):
            places = range(i * samples, (i + 1) * samples)
            # A dict keeps each text once, in order; a total of NaN is never enough.
            right = {rollout.completions[j]: texts[j] for j in places if total[j] >= at_least - 1e-6}
            solved_prompts += bool(right)
            for text in list(right.values())[:per_prompt]:
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
