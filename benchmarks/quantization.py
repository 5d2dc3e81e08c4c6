"""Measure quantised policies: the embedded reasoner over the matrix, with outliers, by calibration; and real kernels.

    python benchmarks/quantization.py                                  # all on the embedded reasoner, three seeds
    python benchmarks/quantization.py --what smollm2 --train gsm8k_train.jsonl.gz --test gsm8k_test.jsonl.gz
    python benchmarks/quantization.py --what speed                     # int8 products on this CPU
    python benchmarks/quantization.py --run false --page docs/quantization.md      # the tables only

Every run is `main.py test --config configs/quantize.yaml` with other settings. A seed decides the problems, the
calibration data and the samples. Results are runs/quantization/<arm>_<seed>.json, so that an interrupted benchmark
continues where it stopped.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads, write_tables  # noqa: E402
from main import main as command_line  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402

RESULTS = Path("runs/quantization")
MARK = "written by benchmarks/quantization.py"
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={RESULTS}"]
#: against outliers, which fall on activations
AGAINST_OUTLIERS = [
    {"name": "RTN", "group": None, "symmetric": True},
    {"name": "SmoothQuant", "group": None, "symmetric": True, "scaling": "smoothquant", "alpha": 0.5},
    {"name": "Hadamard", "group": None, "symmetric": True, "rotation": True},
]
#: what depends on calibration data
CALIBRATED = [
    {"name": "RTN", "group": 32},
    {"name": "GPTQ", "group": 32, "rounding": "gptq"},
    {"name": "AWQ", "group": 32, "scaling": "awq", "clip_search": True},
]
FEW = ["--data.val_size=100", "--model.outliers=1"]


def _arms(what: str) -> dict[str, list[str]]:
    """Settings of the runs of one question after the shipped ones."""
    if what == "matrix":
        return {"matrix": []}
    if what == "outliers":
        cells = [f"--model.methods={json.dumps(AGAINST_OUTLIERS)}", "--model.bits=[W8-A8-KV16,W4-A4-KV16]"]
        return {f"outliers_{factor}": [*cells, f"--model.outliers={factor}"] for factor in (1, 64)}
    cells = [f"--model.methods={json.dumps(CALIBRATED)}", "--model.bits=[W3-A16-KV16,W2-A16-KV16]"]
    return {
        f"calibration_{source}": [*cells, f"--model.calibration.source={source}"] for source in ("traces", "random")
    }


def _path(arm: str, seed: int) -> Path:
    return RESULTS / f"{arm}_{seed}.json"


def measure(arguments: list[str], seed: int) -> dict[str, Any]:
    """The figures of one test."""
    started = time.process_time()
    config = ["--config=configs/quantize.yaml", f"--seed_everything={seed}", *QUIET]
    cli = command_line(["test", *config, *arguments])
    return cli.model.figures | {"cpu_seconds": time.process_time() - started}


def smollm2(train: str, test: str, rows: int) -> list[str]:
    """Settings of the test on SmolLM2: perplexity on the worked solutions of GSM8K, nothing sampled."""
    methods = [{"name": "RTN", "group": 64}, {"name": "GPTQ", "group": 64, "rounding": "gptq"}]
    return [
        "--config=configs/data/gsm8k.yaml",
        f"--data.source={train}",
        f"--data.val_source={test}",
        "--data.init_args.subset=null",
        f"--data.val_size={rows}",
        "--model.policy.model=smollm2-135m-instruct",
        "--model.policy.compute=bfloat16",
        "--model.seeds=[]",
        "--model.solutions=solution",
        "--model.calibration={source: solutions, size: 16, max_tokens: 256}",
        f"--model.methods={json.dumps(methods)}",
        "--model.bits=[W8-A16-KV16,W4-A16-KV16,W3-A16-KV16]",
    ]


def speed(model: str, tokens: int = 64, repeats: int = 10) -> dict[str, float]:
    """CPU milliseconds of a forward over `tokens` tokens: float32, bfloat16, and 8-bit integers."""
    import torch

    from policies import Policy, PolicyParams
    from policies.compute import computing
    from policies.quantization.int8 import use_int8_layers

    def milliseconds(policy: Policy) -> float:
        ids, times = torch.arange(3, 3 + tokens)[None] % policy.vocabulary, []
        with torch.no_grad(), computing(policy):
            for _ in range(repeats + 1):
                start = time.process_time()
                policy.bare(input_ids=ids, use_cache=False)
                times.append(time.process_time() - start)
        return 1e3 * min(times[1:])

    results = {"float32": milliseconds(Policy(PolicyParams(model)).eval())}
    results["bfloat16"] = milliseconds(Policy(PolicyParams(model, compute="bfloat16")).eval())
    policy = Policy(PolicyParams(model)).eval()
    use_int8_layers(policy)
    results["int8, torch._int_mm"] = milliseconds(policy)
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError:
        return results
    policy = Policy(PolicyParams(model)).eval()
    quantize_(policy.bare, Int8DynamicActivationInt8WeightConfig())
    return results | {"int8, torchao": milliseconds(policy)}


def main(
    what: Literal["all", "matrix", "outliers", "calibration", "smollm2", "speed"] = "all",
    seeds: int = 3,
    run: bool = True,
    train: str | None = None,
    test: str | None = None,
    rows: int = 16,
    model: str = "smollm2-135m-instruct",
    page: str | None = None,
) -> None:
    """Run what has no result yet and print the tables.

    Args:
        what: the question; all of those on the embedded reasoner. seeds: number of seeds. run: whether to run, or only
            to print. train, test: files of GSM8K, for smollm2. rows: their number. model: whose speed is measured.
        page: page whose tables are replaced.
    """
    use_threads()
    questions = ["matrix", "outliers", "calibration"] if what == "all" else [what]
    jobs: list[tuple[str, int, list[str]]] = []
    for seed in range(seeds):
        for question in questions:
            if question in ("matrix", "outliers", "calibration"):
                sampled = [*FEW, f"--model.seeds=[{seed}]"]
                jobs += [(arm, seed, [*sampled, *settings]) for arm, settings in _arms(question).items()]
    if run and what == "smollm2":
        if train is None or test is None:
            raise ConfigError("smollm2 needs files of GSM8K; name them with --train and --test.")
        jobs.append(("smollm2", 0, smollm2(train, test, rows)))
    for arm, seed, arguments in jobs if run else []:
        if not (path := _path(arm, seed)).is_file():
            atomic_write_text(path, json.dumps(measure(arguments, seed), indent=1))
    if run and what == "speed" and not (path := _path("speed", 0)).is_file():
        atomic_write_text(path, json.dumps(speed(model) | {"model": model}, indent=1))
    text = tables(seeds)
    print(text)
    if page is not None:
        write_tables(page, MARK, text)


def _finished(arm: str, seeds: int) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for seed in range(seeds) if (path := _path(arm, seed)).is_file()]


def _by_cell(runs: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    cells: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for one in runs:
        for cell in one["cells"]:
            cells[cell["bits"], cell["method"]].append(cell)
    return cells


def _shown(values: list[float | None], digits: int = 3) -> str:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"{numbers[0]:.{digits}g}"
    return f"{sum(numbers) / len(numbers):.{digits}g} ({min(numbers):.{digits}g} to {max(numbers):.{digits}g})"


def cell_table(runs: list[dict[str, Any]]) -> str:
    """Mean and range over the seeds of every cell."""
    cells = _by_cell(runs)
    levels = list(runs[0]["cells"][0]["by_difficulty"])
    head = ["W-A-KV", "method", "bits per weight", "error of the weights", "with rounded inputs", "perplexity"]
    head += ["accuracy", "tokens", *(f"level {level}" for level in levels)] if levels else []
    rows = []
    for (bits, method), of_cell in cells.items():
        row = [bits, method, f"{of_cell[0]['bits_per_weight']:.2f}"]
        row += [_shown([cell[name] for cell in of_cell]) for name in ("error", "output_error")]
        row.append(_shown([cell["perplexity"] for cell in of_cell], 4))
        if levels:
            row += [_shown([cell["accuracy"] for cell in of_cell]), _shown([cell["length"] for cell in of_cell])]
            rates = [[cell["by_difficulty"][level]["accuracy"] for cell in of_cell] for level in levels]
            row += [f"{sum(rate) / len(rate):.2f}" for rate in rates]
        rows.append(row)
    return markdown_table(head, rows)


def tables(seeds: int) -> str:
    """All tables of finished results, with the number of seeds of each."""
    parts = []
    titles = {
        "matrix": "The matrix",
        "outliers_1": "Without outliers",
        "outliers_64": "With injected outliers (factor 64)",
        "calibration_traces": "Calibrated on the policy's own traces",
        "calibration_random": "Calibrated on random tokens",
        "smollm2": "SmolLM2-135M on the solutions of GSM8K",
    }
    for arm, title in titles.items():
        if runs := _finished(arm, seeds):
            parts.append(f"**{title}**, {len(runs)} seed{'s' if len(runs) > 1 else ''}.\n\n{cell_table(runs)}")
    if _path("speed", 0).is_file():
        times = json.loads(_path("speed", 0).read_text())
        rows = [[name, f"{value:.1f}"] for name, value in times.items() if name != "model"]
        parts.append(f"**A forward of {times['model']} over 64 tokens.**\n\n{markdown_table(['', 'CPU ms'], rows)}")
    return "\n\n".join(parts) or "No results yet."


if __name__ == "__main__":
    run_script(main)
