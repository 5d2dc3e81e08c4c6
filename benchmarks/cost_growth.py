"""Growth of a step's time and memory with group size, lengths, vocabulary and model size, with exponents fitted on
log-log axes.

    python benchmarks/cost_growth.py --out docs/plots/cost_growth.png

Every measurement is a separate process: a Llama of random weights generates completions of given lengths, then one
forward and backward pass runs over them. Memory is the step's peak beyond weights and gradients. In the vocabulary's
sweep the weights are frozen under LoRA, so that the gradient of the embedding itself does not count. The last table
keeps the sum of the lengths constant and changes the longest.
"""

import ctypes
import math
import multiprocessing
import sys
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
TIMES = ("rollout", "update", "step")
QUANTITIES = (*TIMES, "memory")


def memory(field: str) -> float:
    """VmRSS or VmHWM of this process, in MB (2^20 bytes)."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def measure(setting: dict[str, Any]) -> dict[str, float]:
    """Seconds and MB of one step.

    Args:
        setting: the keys of `BASE`; `frozen` trains LoRA alone; `lengths` gives the length of every completion in place
            of `completion`.
    """
    import torch

    from benchmarks.common import use_threads
    from benchmarks.random_models import backward, completions_of_lengths, prompts_of_length, random_policy
    from lightning_modules.core.micro_batches import micro_batches
    from policies import LoRA, PolicyParams
    from rollouts import EmbeddedEngine, SamplingParams

    use_threads()
    torch.manual_seed(0)
    hidden = setting["hidden"]
    policy = random_policy(
        PolicyParams("", lora=LoRA(r=8) if setting.get("frozen") else None),
        vocab_size=setting["vocabulary"],
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=setting["layers"],
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        tie_word_embeddings=True,
    )
    rows = setting["prompts"] * setting["group"]
    lengths = setting.get("lengths") or [setting["completion"]] * rows
    forced = completions_of_lengths(policy, lengths)
    prompts = prompts_of_length(setting["prompts"], setting["prompt"])
    engine, sampling = EmbeddedEngine(), SamplingParams(max(lengths))

    def rollout() -> Any:
        return engine.generate(policy, prompts, [{}] * len(prompts), setting["group"], sampling, forced)

    def update(batch: Any) -> None:
        backward(policy, batch, micro_batches(batch, slice(0, rows), setting["budget"], None))

    update(rollout())
    ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    rollout_seconds, update_seconds = [], []
    for _ in range(3):
        start = time.perf_counter()
        batch = rollout()
        middle = time.perf_counter()
        update(batch)
        rollout_seconds.append(middle - start)
        update_seconds.append(time.perf_counter() - middle)
    return {
        "rollout": min(rollout_seconds),
        "update": min(update_seconds),
        "step": min(rollout_seconds) + min(update_seconds),
        "memory": memory("VmHWM") - before,
    }


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the least-squares line through (log size, log value)."""
    x, y = [math.log(s) for s in sizes], [math.log(max(v, 1e-9)) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def measure_in_process(setting: dict[str, Any]) -> dict[str, float]:
    """`measure` in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (setting,))


def print_header(label: str, width: int) -> None:
    print(f"\n{label:>{width}}" + "".join(f"{name + ' s':>12}" for name in TIMES) + f"{'memory MB':>12}")


def print_row(label: str, width: int, result: dict[str, float]) -> None:
    print(
        f"{label:>{width}}" + "".join(f"{result[name]:12.3f}" for name in TIMES) + f"{result['memory']:12.0f}",
        flush=True,
    )


def main(out: str | None = None, sweeps: list[str] = list(SWEEPS)) -> None:  # noqa: B006
    """Print a table per sweep.

    Args:
        out: path of a picture of the sweeps; none is drawn by default.
        sweeps: names of the quantities to vary.
    """
    results: dict[str, list[dict[str, float]]] = {}
    for name in sweeps:
        print_header(name, 12)
        results[name] = []
        for size in SWEEPS[name]:
            result = measure_in_process({**BASE, name: size, "frozen": name == "vocabulary"})
            results[name].append(result)
            print_row(str(size), 12, result)
        slopes = [exponent(SWEEPS[name], [result[key] for result in results[name]]) for key in QUANTITIES]
        print(f"{'exponent':>12}" + "".join(f"{slope:12.2f}" for slope in slopes))
    print_header("sum, longest", 14)
    for longest in (32, 128, 512):
        others = (32 * 32 - longest) // 31
        lengths = [longest] + [others] * 30 + [32 * 32 - longest - 30 * others]
        print_row(f"1024, {longest}", 14, measure_in_process({**BASE, "lengths": lengths}))
    if out:
        draw(results, out)


def draw(results: dict[str, list[dict[str, float]]], out: str) -> None:
    """Draw seconds and memory of every sweep on log-log axes."""
    from matplotlib.figure import Figure

    labels = {
        "group": "group size",
        "hidden": "hidden size",
        "prompt": "prompt tokens",
        "completion": "completion tokens",
    }
    units = {"step": "seconds per step", "memory": "MB beyond weights and gradients"}
    figure = Figure(figsize=(3.2 * len(results), 5.6), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    for column, (name, sweep) in enumerate(results.items()):
        for row, (key, unit) in enumerate(units.items()):
            axis, values = axes[row][column], [result[key] for result in sweep]
            axis.loglog(SWEEPS[name], values, "o-")
            axis.set_xlabel(labels.get(name, name))
            axis.set_title(f"exponent {exponent(SWEEPS[name], values):.2f}", fontsize=9)
            if not column:
                axis.set_ylabel(unit)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
