"""How near to the machine's limits generation and update come: their time against floors measured on the same machine in the same run.

    python benchmarks/limits.py                        # SmolLM2-135M, float32, as in vs_trl.py
    python benchmarks/limits.py --model assets/tiny_reasoner

Two floors. `roofline`: the larger of (operations / rate of a large matrix product) and (bytes of weights / reading bandwidth), step by step with the
rows that live in it. `layers alone`: the model's matrix products at these very shapes and nothing else, in PyTorch's plain layout.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.vs_trl import Work, texts  # noqa: E402
from lightning_modules.core.micro_batches import micro_batches  # noqa: E402
from policies import Policy, PolicyParams  # noqa: E402
from rollouts import EmbeddedEngine, SamplingParams  # noqa: E402
from support.allocator import keep_freed_memory  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402


def best(function: Callable[[], Any], times: int = 3) -> float:
    """Seconds of the fastest call, after one that is not timed."""
    function()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def main(
    model: str = "smollm2-135m-instruct",
    prompts: int = 4,
    group_size: int = 8,
    max_new_tokens: int = 64,
    token_budget: int = 400,
) -> None:
    """Print the floors and our fraction of them."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    rate = 2 * 2048**3 / best(lambda: a @ b, 5)
    big = torch.randn(100_000_000)
    bandwidth = big.numel() * 4 / best(big.sum, 5)
    del a, b, big
    print(
        f"matrix products {rate / 1e9:.0f} GFLOP/s, reading {bandwidth / 1e9:.1f} GB/s, float32, {torch.get_num_threads()} thread(s)"
    )
    policy = Policy(PolicyParams(model))
    linears = [module.weight for module in policy.bare.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
    head = policy.bare.get_output_embeddings().weight
    body, every = sum(w.numel() for w in linears), sum(w.numel() for w in linears) + head.numel()
    work = Work(model=model, prompts=prompts)
    ids = [policy.encode(text) for text in texts(work)[:prompts]]
    engine, sampling = EmbeddedEngine(), SamplingParams(max_new_tokens)

    def roll(limit: SamplingParams = sampling) -> Any:
        with isolated_rng("limits"):
            return engine.generate(policy, ids, [{}] * prompts, group_size, limit)

    batch = roll()
    live = batch.completion_mask.sum(0).tolist()

    def layers(weights: list[torch.Tensor], rows: int) -> Callable[[], None]:
        inputs = {w.shape[1]: torch.randn(rows, w.shape[1]) for w in weights}

        def multiply() -> None:
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

        return multiply

    def floor(parameters: int, rows: int) -> float:
        return max(2 * parameters * rows / rate, 4 * parameters / bandwidth)

    prompt_tokens, tokens = sum(map(len, ids)), int(batch.lengths.sum())
    prefill = best(lambda: roll(SamplingParams(1)))
    decode = best(roll) - prefill
    with torch.no_grad():
        alone = {rows: best(layers([*linears, head], rows), 2) for rows in sorted(set(live))}
        prefill_alone = best(layers(linears, prompt_tokens))
    table = [
        ("prefill", prefill, floor(body, prompt_tokens), prefill_alone, prompt_tokens),
        ("decode", decode, sum(floor(every, rows) for rows in live[1:]), sum(alone[rows] for rows in live[1:]), tokens),
    ]
    passes = micro_batches(batch, slice(0, len(batch.finish_reasons)), token_budget, None)

    def update() -> None:
        for micro in passes:
            logprobs, _ = policy.logprobs(batch.prompt_groups(micro.rows))
            (logprobs * batch.completion_mask[micro.rows, : micro.width]).sum().backward()
        policy.zero_grad()

    # Forward, gradient of inputs, gradient of weights: three products a weight. The output layer sees completion tokens alone.
    computed = sum(
        int(g.prompt_mask.sum()) + int((g.completion_mask.sum(1) - 1).sum())
        for g in (batch.prompt_groups(m.rows) for m in passes)
    )
    alone_update = 0.0
    with torch.no_grad():
        for micro in passes:
            groups = batch.prompt_groups(micro.rows)
            predicted = int(groups.completion_mask.sum())
            seen = int(groups.prompt_mask.sum()) + predicted - len(micro.rows)
            for weights, rows in ((linears, seen), ([head], predicted)):
                inputs = {w.shape: (torch.randn(rows, w.shape[1]), torch.randn(rows, w.shape[0])) for w in weights}
                start = time.perf_counter()
                for weight in weights:
                    x, gradient = inputs[weight.shape]
                    F.linear(x, weight), gradient @ weight, gradient.T @ x
                alone_update += time.perf_counter() - start
    table.append(("update", best(update), 6 * (body * computed + head.numel() * tokens) / rate, alone_update, tokens))
    print(
        f"{'':10}{'seconds':>10}{'tokens/s':>10}{'roofline s':>12}{'fraction':>10}{'layers alone s':>16}{'fraction':>10}"
    )
    for name, seconds, limit, products, count in table:
        print(
            f"{name:10}{seconds:10.2f}{count / seconds:10.0f}{limit:12.2f}{limit / seconds:10.0%}{products:16.2f}{products / seconds:10.0%}"
        )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
