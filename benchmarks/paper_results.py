"""Results of `benchmarks/papers.py`: where they lie, which of them still count, and values read from their curves.

Results of runs lie in runs/papers/. What the pages show is copied to benchmarks/results/papers/, a file per paper, so
that tables and pictures can be made again, and checked, without the runs. A result counts only if it was measured with
the settings of today: its digest covers configurations, arguments, and the files that these name, such as weights.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.experiments import result_path  # noqa: E402
from support.files import atomic_write_text, path_hashes  # noqa: E402
from support.papers import ROOT, Experiment, Paper, all_papers, flags  # noqa: E402

RESULTS, STORE = Path("runs/papers"), ROOT / "benchmarks/results/papers"
SEEDS = (0, 1, 2)
EXPERIMENTS: dict[str, tuple[Paper, Experiment]] = {
    name: (paper, paper.experiment) for name, paper in all_papers().items() if paper.experiment
}
#: metrics that count tokens which are generated beside the rollouts' completions
TOKENS, EXTRA = "train/length", ("train/extra_tokens", "train/laser_monitor_tokens")
Curve = list[tuple[int, float]]
Result = dict[str, Any]


def command(paper: Paper, experiment: Experiment, arm: str, seed: int = 0) -> list[str]:
    """The arguments of an arm's run after `fit`."""
    settings = dict(experiment.arms[arm])
    configs = settings.pop("config", paper.configs)
    common = {
        "seed_everything": seed,
        "trainer.max_steps": experiment.rollouts,
        "trainer.val_check_interval": experiment.validate_every,
    }
    return [*(f"--config=configs/{name}.yaml" for name in configs), *flags(settings), *flags(common)]


def _texts(value: object) -> Iterator[str]:
    """Every text in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def digest(name: str, arm: str) -> str:
    """Identifies what an arm's results were measured with, except for the project's code and the seed."""
    paper, experiment = EXPERIMENTS[name]
    settings = experiment.arms[arm]
    configs = [
        yaml.safe_load((ROOT / f"configs/{file}.yaml").read_text()) for file in settings.get("config", paper.configs)
    ]
    named = {text for text in _texts([configs, settings]) if "/" in text and len(text) < 200 and (ROOT / text).exists()}
    files = [[text, path_hashes(ROOT / text)] for text in sorted(named)]
    content = json.dumps([configs, command(paper, experiment, arm), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def path_of(name: str, arm: str, seed: int) -> Path:
    """The file of a run's result."""
    return result_path(RESULTS, f"{name}_{arm}", seed)


def stored(name: str) -> dict[str, Any]:
    """The results of a paper that the project keeps: "arm seed" -> result."""
    path = STORE / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def result_of(name: str, arm: str, seed: int) -> Result | None:
    """The result of a run, from runs/papers/ or as it was kept; None without one of today's settings."""
    path = path_of(name, arm, seed)
    result = json.loads(path.read_text()) if path.is_file() else stored(name).get(f"{arm} {seed}")
    return result if result is not None and result["digest"] == digest(name, arm) else None


def results(name: str, arm: str) -> list[Result]:
    """Those of the seeds that have run."""
    return [result for seed in SEEDS if (result := result_of(name, arm, seed)) is not None]


def keep(name: str) -> None:
    """Copy what the pages show of a paper's results into the project."""
    experiment = EXPERIMENTS[name][1]
    metrics = {*experiment.columns.values(), TOKENS, *EXTRA}
    kept = {}
    for arm in experiment.arms:
        for seed in SEEDS:
            if (result := result_of(name, arm, seed)) is not None:
                curves = {
                    metric: [[step, float(f"{value:.5g}")] for step, value in curve]
                    for metric, curve in sorted(result["curves"].items())
                    if metric in metrics
                }
                kept[f"{arm} {seed}"] = {"digest": result["digest"], "rows": result["rows"], "curves": curves}
    if kept:
        STORE.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(result)}" for key, result in kept.items())
        atomic_write_text(STORE / f"{name}.json", f"{{\n{lines}\n}}\n")


# ---- values read from curves ----------------------------------------------------------------------------------------


def tokens(result: Result) -> list[float]:
    """Generated training tokens up to and including each rollout."""
    extra = {step: value for metric in EXTRA for step, value in result["curves"].get(metric, [])}
    total, sums = 0.0, []
    for step, length in result["curves"][TOKENS]:
        total += length * result["rows"] + extra.get(step, 0.0)
        sums.append(total)
    return sums


def at(curve: Curve, fraction: float) -> float:
    """The value at the beginning (0) or the end (1) of a curve.

    Of validations it is the first, or the mean of the last three; of rollouts the mean of a tenth.
    """
    width = len(curve) // 10 if len(curve) > 20 else 1 if fraction == 0 else min(3, len(curve) // 3 or 1)
    part = curve[:width] if fraction == 0 else curve[-width:]
    return mean(value for _, value in part)


def until(result: Result, budget: float) -> Result:
    """The result as it stood when so many tokens had been generated."""
    rollouts = sum(total <= budget for total in tokens(result))
    cut = {
        metric: [point for point in curve if point[0] < rollouts] or curve[:1]
        for metric, curve in result["curves"].items()
    }
    return result | {"curves": cut}


def at_equal_tokens(name: str, arm: str) -> tuple[list[Result], list[Result]] | None:
    """An arm and plain GRPO, each cut at the smaller number of tokens of the two; None unless both have all seeds."""
    ours, theirs = results(name, arm), results(name, "grpo")
    if arm == "grpo" or not ours or len(ours) != len(theirs):
        return None
    budgets = [min(tokens(a)[-1], tokens(b)[-1]) for a, b in zip(ours, theirs, strict=True)]
    pairs = zip(ours, theirs, budgets, strict=True)
    cut = [(until(a, budget), until(b, budget)) for a, b, budget in pairs]
    return [pair[0] for pair in cut], [pair[1] for pair in cut]
