"""Measure updates without the rows that have no signal, and in bfloat16: ratios of alternating runs in one process.

    python benchmarks/update_ratios.py                                # SmolLM2-135M's shape, random weights
    python benchmarks/update_ratios.py --layers 4 --pairs 5

Times are CPU seconds of one thread, so that other processes on the machine change them little.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import markdown_table, run_script, use_threads  # noqa: E402
from benchmarks.random_models import completions_of_lengths, prompts_of_length, random_policy  # noqa: E402
from lightning_modules.core.optimizer_steps import Steps  # noqa: E402
from lightning_modules.core.policy_update import Objective, PolicyUpdate  # noqa: E402
from objectives import ClippedSurrogate, SequenceMean  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from policies.compute import probe  # noqa: E402
from rollouts import BatchPlan, EmbeddedEngine, RolloutBatch, SamplingParams  # noqa: E402
from support.allocator import keep_freed_memory  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402


def seconds(function: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def alternating(label: str, before: Callable[[], Any], after: Callable[[], Any], pairs: int) -> list[str]:
    """A row of the table: medians of both, and the ratio with its smallest and largest value over the pairs."""
    before(), after()
    times = [(seconds(before), seconds(after)) for _ in range(pairs)]
    ratios = sorted(one / other for one, other in times)
    medians = [sorted(column)[pairs // 2] for column in zip(*times, strict=True)]
    row = [label, *(f"{value:.2f}" for value in medians), f"{ratios[pairs // 2]:.2f}"]
    print(row, [f"{ratio:.2f}" for ratio in ratios], flush=True)
    return [*row[:3], f"{row[3]} ({ratios[0]:.2f} - {ratios[-1]:.2f})"]


def update(policy: Policy, batch: RolloutBatch, budget: int, needs_all_rows: bool, prompts: int, group: int) -> None:
    """One update of GRPO without a KL term; its gradient is dropped."""

    def token_loss(logprobs: Any, behaviour: Any, reference: Any, advantages: Any, mask: Any) -> Any:
        return ClippedSurrogate()(logprobs, behaviour, advantages, mask)

    objective = Objective(
        token_loss,
        lambda batch, rows, sampled: sampled,
        lambda batch, part: None,
        SequenceMean(),
        1.0,
        0.0,
        None,
        needs_all_rows,
    )
    steps = Steps(torch.optim.SGD(policy.model.parameters(), lr=0.0), None, lambda loss: loss.backward(), None)
    PolicyUpdate(
        batch,
        batch.action_mask,
        policy=policy,
        plan=BatchPlan(prompts, group),
        objective=objective,
        steps=steps,
        sampled_logprobs=None,
        reference_logprobs=None,
        token_budget=budget,
        may_halve=False,
    ).run()


def main(
    layers: int = 30,
    prompts: int = 4,
    group_size: int = 8,
    completion: int = 64,
    token_budget: int = 400,
    pairs: int = 3,
) -> None:
    """Print the table.

    Args:
        layers: of the model, whose other sizes are SmolLM2-135M's.
        prompts: prompts of 50 tokens per rollout; every second group has no signal.
        group_size: completions per prompt.
        completion: tokens per completion.
        token_budget: tokens per pass of the update.
        pairs: alternating pairs of measurements.
    """
    use_threads()
    keep_freed_memory()
    torch.manual_seed(0)
    policy = random_policy(
        PolicyParams(""),
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    print(probe(policy.bare.config))
    engine, rows = EmbeddedEngine(), prompts * group_size
    ids, data = prompts_of_length(prompts, 50), [{"id": str(prompt)} for prompt in range(prompts)]
    sampling = SamplingParams(max_new_tokens=completion)

    def rollout(precision: Any, forced: Any = None) -> RolloutBatch:
        policy.compute = precision
        with isolated_rng("ratios"):
            return engine.generate(policy, ids, data, group_size, sampling, forced)

    batch = rollout("float32", completions_of_lengths(policy, [completion] * rows))
    batch.action_mask = batch.completion_mask
    silent = (torch.arange(rows) // group_size) % 2 == 1

    def updated(precision: Any, advantages: torch.Tensor, needs_all_rows: bool = False) -> Callable[[], None]:
        def call() -> None:
            policy.compute, batch.advantages = precision, advantages
            update(policy, batch, token_budget, needs_all_rows, prompts, group_size)

        return call

    signal = torch.randn(rows)
    half = signal.masked_fill(silent, 0.0)
    table = [
        alternating("update, half of the groups", updated("float32", half, True), updated("float32", half), pairs),
        alternating("update in bfloat16", updated("float32", signal), updated("bfloat16", signal), pairs),
        alternating("rollout in bfloat16", lambda: rollout("float32"), lambda: rollout("bfloat16"), pairs),
    ]
    print(markdown_table(["", "before, CPU s", "after, CPU s", "ratio (min - max)"], table))


if __name__ == "__main__":
    run_script(main)
