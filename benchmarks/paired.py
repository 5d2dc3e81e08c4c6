"""Two policies prompt by prompt: both means, their difference with a bootstrap interval, how often each is better.

    python -m benchmarks.paired runs/A/predictions.jsonl runs/B/predictions.jsonl
    python -m benchmarks.paired runs/A/checkpoints/rollout_000040.ckpt runs/A/checkpoints/rollout_000080.ckpt
    python -m benchmarks.paired A.jsonl B.jsonl --out differences.csv     # also one line per prompt

A checkpoint's predictions are made by `main.py predict` with the configuration of its run, beside the checkpoint.
Completions of one prompt are averaged first, so prompts are the independent units; the interval says how much the
difference would change with other prompts of the same kind, and nothing about other seeds of the training.
"""

import csv
import io
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy
from scipy.stats import bootstrap

from benchmarks.common import markdown_table, run_script
from support.errors import ConfigError
from support.files import atomic_write_text

Means = dict[str, dict[str, float]]


def main(a: str, b: str, out: str | None = None, draws: int = 10_000, seed: int = 0) -> None:
    """Print one row per reward, and one for the length.

    Args:
        a, b: files of predictions (.jsonl) or checkpoints (.ckpt).
        out: CSV file for the differences by prompt.
        draws: number of bootstrap samples.
        seed: seed of the bootstrap.
    """
    if draws < 1000:
        raise ConfigError(f"--draws is {draws}; an interval needs at least 1000.")
    ours, theirs = by_prompt(predictions(Path(a))), by_prompt(predictions(Path(b)))
    prompts = [prompt for prompt in ours if prompt in theirs]
    metrics = [name for name in _names(ours) if name in _names(theirs)]
    if len(prompts) < 2 or not metrics:
        raise ConfigError(
            f"{a} and {b} share {len(prompts)} prompts and the metrics {metrics}; they need two prompts (by id) and a "
            "metric in common. Predict with the same data and rewards."
        )
    rows = []
    for name in metrics:
        pairs = [(ours[p][name], theirs[p][name]) for p in prompts if name in ours[p] and name in theirs[p]]
        if len(pairs) > 1:
            rows.append(_row(name, pairs, draws, seed))
    left_out = len(ours) + len(theirs) - 2 * len(prompts)
    print(f"{len(prompts)} prompts in both" + (f", {left_out} in one of the two left out" if left_out else ""))
    print(markdown_table(["metric", "A", "B", "B - A", "95 % interval", "B larger / equal / smaller"], rows))
    if out is not None:
        atomic_write_text(Path(out), table(prompts, metrics, ours, theirs))


def predictions(path: Path) -> Path:
    """The file of predictions; those of a checkpoint are made if they do not exist.

    Raises:
        ConfigError: for a file that does not exist or is neither.
    """
    if path.suffix not in (".jsonl", ".ckpt") or not path.exists():
        problem = "does not exist" if not path.exists() else "is neither a .jsonl nor a .ckpt"
        raise ConfigError(f"{path} {problem}; name a file of predictions or a checkpoint.")
    if path.suffix == ".jsonl":
        return path
    file = path.with_suffix(".predictions.jsonl")
    if not file.exists() or file.stat().st_mtime_ns < path.stat().st_mtime_ns:
        writer = {"class_path": "callbacks.WritePredictions", "init_args": {"path": str(file)}}
        program = sys.modules.get("main") or __import__("main")
        program.main(
            ["predict", f"--ckpt_path={path}", "--trainer.logger=false", f"--trainer.callbacks+={json.dumps(writer)}"]
        )
    return file


def by_prompt(path: Path) -> Means:
    """Id of a prompt -> metric -> mean over its completions: every reward and the length.

    Raises:
        ConfigError: for a line that is no prediction.
    """
    values: dict[str, dict[str, list[float]]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                metrics = values.setdefault(str(row["id"]), {})
                for name, value in _metrics(row):
                    metrics.setdefault(name, []).append(value)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(
                    f"{path}:{number} is not a prediction ({error!r}); it needs an id, and reward/<name> or length. "
                    "`main.py predict` writes such files."
                ) from error
    return {prompt: {name: mean(all_values) for name, all_values in row.items()} for prompt, row in values.items()}


def _metrics(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if (name.startswith("reward/") or name == "length") and value is not None and math.isfinite(float(value)):
            yield name, float(value)


def _names(means: Means) -> list[str]:
    return list(dict.fromkeys(name for row in means.values() for name in row))


def difference(pairs: Sequence[tuple[float, float]], draws: int, seed: int) -> tuple[float, float, float]:
    """Mean of B - A and its 95 % interval by the bias-corrected and accelerated bootstrap over prompts (Efron 1987)."""
    gaps = numpy.array([theirs - ours for ours, theirs in pairs])
    if gaps.min() == gaps.max():
        return (float(gaps[0]),) * 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of degenerate data, which the next line sees by their NaN
        result = bootstrap(
            (gaps,), numpy.mean, n_resamples=draws, batch=1000, rng=numpy.random.default_rng(seed)
        ).confidence_interval
    low, high = float(result.low), float(result.high)
    return float(gaps.mean()), low, high


def _row(name: str, pairs: Sequence[tuple[float, float]], draws: int, seed: int) -> list[str]:
    gap, low, high = difference(pairs, draws, seed)
    larger = sum(theirs > ours for ours, theirs in pairs)
    smaller = sum(theirs < ours for ours, theirs in pairs)
    counts = f"{larger} / {len(pairs) - larger - smaller} / {smaller}"
    ours, theirs = (mean(side) for side in zip(*pairs, strict=True))
    return [name, f"{ours:.3f}", f"{theirs:.3f}", f"{gap:+.3f}", f"{low:+.3f} to {high:+.3f}", counts]


def table(prompts: Sequence[str], metrics: Sequence[str], ours: Means, theirs: Means) -> str:
    """CSV with a line per prompt and metric that both have: id, metric, A, B, B - A."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "metric", "A", "B", "B - A"])
    for prompt in prompts:
        for name in metrics:
            if name in ours[prompt] and name in theirs[prompt]:
                first, second = ours[prompt][name], theirs[prompt][name]
                writer.writerow([prompt, name, first, second, second - first])
    return text.getvalue()


if __name__ == "__main__":
    run_script(main, as_positional=True)
