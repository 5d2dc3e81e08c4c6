"""Time of generation and update against lower bounds that are measured on the same machine in the same run.

    python benchmarks/limits.py                        # SmolLM2-135M, float32, as in vs_trl.py
    python benchmarks/limits.py --model assets/tiny_reasoner

There are two lower bounds. `roofline`: the larger of (operations / rate of a large matrix product) and (bytes of
weights / read bandwidth), summed over the steps with the rows that are unfinished in each. `layers alone`: the model's
matrix products at the same shapes and nothing else, in PyTorch's plain layout.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import use_threads  # noqa: E402
from benchmarks.random_models import backward  # noqa: E402
from benchmarks.vs_trl import Work, texts  # noqa: E402
from lightning_modules.core.micro_batches import micro_batches  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams  # noqa: E402
from support.allocator import keep_freed_memory  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402


def best(function: Callable[[], Any], times: int = 3) -> float:
    """Seconds of the fastest of several calls, after one that is not timed."""
    function()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main(
    model: str = "smollm2-135m-instruct",
    prompts: int = 4,
    group_size: int = 8,
    max_new_tokens: int = 64,
    token_budget: int = 400,
) -> None:
    """Print the times, the lower bounds and the fractions of them that are reached.

    Args:
        model: as policy.model.
        prompts: prompts per rollout.
        group_size: completions per prompt.
        max_new_tokens: maximum tokens per completion.
        token_budget: tokens per micro-batch of the update.
    """
    use_threads()
    keep_freed_memory()
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    rate = 2 * 2048**3 / best(lambda: a @ b, 5)
    big = torch.randn(100_000_000)
    bandwidth = big.numel() * 4 / best(big.sum, 5)
    del a, b, big
    print(
        f"matrix products {rate / 1e9:.0f} GFLOP/s, reading {bandwidth / 1e9:.1f} GB/s, float32, "
        f"{torch.get_num_threads()} thread(s)"
    )
    policy = Policy(PolicyParams(model))
    linears = [module.weight for module in policy.bare.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
    head = policy.bare.get_output_embeddings().weight
    layer_weights = sum(w.numel() for w in linears)
    all_weights = layer_weights + head.numel()
    work = Work(model=model, prompts=prompts)
    ids = [policy.encode(text) for text in texts(work)[:prompts]]
    engine, sampling = EmbeddedEngine(), SamplingParams(max_new_tokens)

    def rollout(limit: SamplingParams = sampling) -> Any:
        with isolated_rng("limits"):
            return engine.generate(policy, ids, [{}] * prompts, group_size, limit)

    batch = rollout()
    rows_per_step = batch.completion_mask.sum(0).tolist()

    def layers(weights: list[torch.Tensor], rows: int) -> Callable[[], None]:
        inputs = {w.shape[1]: torch.randn(rows, w.shape[1]) for w in weights}

        def multiply() -> None:
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

        return multiply

    def floor(parameters: int, rows: int) -> float:
        return max(2 * parameters * rows / rate, 4 * parameters / bandwidth)

    prompt_tokens, tokens = sum(map(len, ids)), int(batch.lengths.sum())
    prefill = best(lambda: rollout(SamplingParams(1)))
    decode = best(rollout) - prefill
    with torch.no_grad():
        step_alone = {rows: best(layers([*linears, head], rows), 2) for rows in sorted(set(rows_per_step))}
        prefill_alone = best(layers(linears, prompt_tokens))
    decode_floor = sum(floor(all_weights, rows) for rows in rows_per_step[1:])
    decode_alone = sum(step_alone[rows] for rows in rows_per_step[1:])
    table = [
        ("prefill", prefill, floor(layer_weights, prompt_tokens), prefill_alone, prompt_tokens),
        ("decode", decode, decode_floor, decode_alone, tokens),
    ]
    passes = micro_batches(batch, slice(0, len(batch.finish_reasons)), token_budget, None)

    def update() -> None:
        backward(policy, batch, passes)
        policy.zero_grad()

    # Forward, gradient of inputs, gradient of weights: three products per weight. The output layer is applied to
    # completion tokens only.
    computed_tokens = sum(
        int(g.prompt_mask.sum()) + int((g.completion_mask.sum(1) - 1).sum())
        for g in (batch.prompt_groups(m.rows) for m in passes)
    )
    update_alone = 0.0
    with torch.no_grad():
        for micro in passes:
            groups = batch.prompt_groups(micro.rows)
            predicted_tokens = int(groups.completion_mask.sum())
            input_tokens = int(groups.prompt_mask.sum()) + predicted_tokens - len(micro.rows)
            for weights, rows in ((linears, input_tokens), ([head], predicted_tokens)):
                inputs = {w.shape: (torch.randn(rows, w.shape[1]), torch.randn(rows, w.shape[0])) for w in weights}
                start = time.perf_counter()
                for weight in weights:
                    x, gradient = inputs[weight.shape]
                    F.linear(x, weight), gradient @ weight, gradient.T @ x
                update_alone += time.perf_counter() - start
    update_floor = 6 * (layer_weights * computed_tokens + head.numel() * tokens) / rate
    table.append(("update", best(update), update_floor, update_alone, tokens))
    print(
        f"{'':10}{'seconds':>10}{'tokens/s':>10}{'roofline s':>12}{'fraction':>10}{'layers alone s':>16}"
        f"{'fraction':>10}"
    )
    for name, seconds, roofline, alone, count in table:
        print(
            f"{name:10}{seconds:10.2f}{count / seconds:10.0f}{roofline:12.2f}{roofline / seconds:10.0%}"
            f"{alone:16.2f}{alone / seconds:10.0%}"
        )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
