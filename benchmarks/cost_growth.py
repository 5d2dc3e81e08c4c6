"""How the time and the memory of a step grow: with group size, lengths, vocabulary and model size; exponents fitted on log-log axes.

    python benchmarks/cost_growth.py --out docs/plots/cost_growth.png

Every cell is a process of its own: a Llama of random weights generates completions of given lengths, then one forward and backward pass is
done over them. Memory is what the step holds at its peak beyond weights and gradients. In the vocabulary's sweep the weights are frozen under LoRA,
so that the gradient of the embedding itself does not count. The last table holds the sum of the lengths and changes the longest.
"""

import ctypes
import math
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

BASE: dict[str, Any] = {
    "prompts": 4,
    "group": 8,
    "prompt": 64,
    "completion": 32,
    "vocabulary": 8192,
    "hidden": 256,
    "layers": 4,
    "budget": 1024,
}
SWEEPS: dict[str, list[int]] = {
    "group": [4, 8, 16, 32, 64],
    "completion": [16, 32, 64, 128, 256],
    "prompt": [32, 64, 128, 256, 512],
    "vocabulary": [8192, 16384, 32768, 65536, 151936],
    "hidden": [128, 256, 512, 768],
}


def memory(field: str) -> float:
    """MB of VmRSS or VmHWM."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def cell(given: dict[str, Any]) -> dict[str, float]:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from transformers import LlamaConfig, LlamaForCausalLM

    from assets.make_untrained import reasoner_tokenizer
    from lightning_modules.core.micro_batches import micro_batches
    from policies import LoRA, Policy, PolicyParams
    from rollouts import EmbeddedEngine, SamplingParams

    torch.manual_seed(0)
    tokenizer, hidden = reasoner_tokenizer(), given["hidden"]
    config = LlamaConfig(
        vocab_size=given["vocabulary"], hidden_size=hidden, intermediate_size=8 * hidden // 3, num_hidden_layers=given["layers"],
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 128), max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        policy = Policy(PolicyParams(folder, lora=LoRA(r=8) if given.get("frozen") else None))
    rows = given["prompts"] * given["group"]
    lengths = given.get("lengths") or [given["completion"]] * rows
    # Forced tokens that end with an end token give every completion its length; all else is computed as ever.
    forced = [
        [7 + (i + j) % 90 for j in range(length - 1)] + [tokenizer.eos_token_id] for i, length in enumerate(lengths)
    ]
    prompts = [[7 + (i * j) % 90 for j in range(given["prompt"])] for i in range(given["prompts"])]
    engine, sampling = EmbeddedEngine(), SamplingParams(max(lengths))

    def roll() -> Any:
        return engine.generate(policy, prompts, [{}] * len(prompts), given["group"], sampling, forced)

    def update(batch: Any) -> None:
        for micro in micro_batches(batch, slice(0, rows), given["budget"], None):
            logprobs, _ = policy.logprobs(batch.prompt_groups(micro.rows))
            (logprobs * batch.completion_mask[micro.rows, : micro.width]).sum().backward()

    update(roll())
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    times: list[list[float]] = [[], []]
    for _ in range(3):
        start = time.perf_counter()
        batch = roll()
        middle = time.perf_counter()
        update(batch)
        times[0].append(middle - start)
        times[1].append(time.perf_counter() - middle)
    return {
        "rollout": min(times[0]),
        "update": min(times[1]),
        "step": min(times[0]) + min(times[1]),
        "memory": memory("VmHWM") - before,
    }


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of a line through (log size, log value)."""
    x, y = [math.log(s) for s in sizes], [math.log(max(v, 1e-9)) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def run(given: dict[str, Any]) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cell, (given,))


def main(out: str | None = None, sweeps: list[str] = list(SWEEPS)) -> None:  # noqa: B006
    """Print a table for each sweep, and draw them if `out` is given."""
    found: dict[str, list[dict[str, float]]] = {}
    for name in sweeps:
        print(f"\n{name:>12}{'rollout s':>12}{'update s':>12}{'step s':>12}{'memory MB':>12}")
        found[name] = []
        for size in SWEEPS[name]:
            result = run({**BASE, name: size, "frozen": name == "vocabulary"})
            found[name].append(result)
            print(
                f"{size:12}"
                + "".join(f"{result[key]:12.3f}" for key in ("rollout", "update", "step"))
                + f"{result['memory']:12.0f}",
                flush=True,
            )
        slopes = {
            key: exponent(SWEEPS[name], [r[key] for r in found[name]])
            for key in ("rollout", "update", "step", "memory")
        }
        print(f"{'exponent':>12}" + "".join(f"{slope:12.2f}" for slope in slopes.values()))
    print(f"\n{'sum, longest':>14}{'rollout s':>12}{'update s':>12}{'step s':>12}{'memory MB':>12}")
    for longest in (32, 128, 512):
        others = (32 * 32 - longest) // 31
        lengths = [longest] + [others] * 30 + [32 * 32 - longest - 30 * others]
        result = run({**BASE, "lengths": lengths})
        print(
            f"{'1024, ' + str(longest):>14}"
            + "".join(f"{result[k]:12.3f}" for k in ("rollout", "update", "step"))
            + f"{result['memory']:12.0f}"
        )
    if out:
        draw(found, out)


def draw(found: dict[str, list[dict[str, float]]], out: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 5.6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (name, results) in enumerate(found.items()):
        for row, (key, unit) in enumerate((("step", "seconds a step"), ("memory", "MB beyond weights and gradients"))):
            axis = axes[row][column]
            axis.loglog(SWEEPS[name], [r[key] for r in results], "o-")
            axis.set_xlabel(
                {"group": "group size", "hidden": "hidden size"}.get(
                    name, name + " tokens" if name in ("prompt", "completion") else name
                )
            )
            axis.set_title(f"exponent {exponent(SWEEPS[name], [r[key] for r in results]):.2f}", fontsize=9)
            if not column:
                axis.set_ylabel(unit)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
