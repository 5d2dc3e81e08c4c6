"""Measures how often a policy is returned although its true expected cost exceeds the threshold.

    python benchmarks/safety_guarantee.py
    python benchmarks/safety_guarantee.py --parts [statistics]
    python benchmarks/safety_guarantee.py --parts [training] --seeds 20 --methods [lagrangian]

Both parts by default, with tables on the terminal and plots in docs/plots.

`statistics`: no training. Candidates whose true cost lies just above the threshold are tested again and again; a test
that passes one is a failure, and at most delta of them may be.
`training`: the records help desk, with its rule as reward and as cost, so that the truth is known. Every method trains
on every seed with its own prompts; then the policy's true cost is measured on fresh prompts. Finished runs are kept in
--results and not repeated.
"""

import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent))

import lightning as L  # noqa: E402

from datamodules import RecordsPrompts  # noqa: E402
from datamodules.records_desk import draw_rows  # noqa: E402
from lightning_modules import HCRLHF, Constraint, Evaluation, SafetyTest  # noqa: E402
from objectives import Bound, ClopperPearson, EmpiricalBernstein, Hoeffding, StudentT  # noqa: E402
from policies import PolicyParams  # noqa: E402
from rewards import RecordsCost, RecordsReward  # noqa: E402
from rollouts import BatchPlan, SamplingParams  # noqa: E402
from support.seeding import isolated_rng  # noqa: E402

BOUNDS: list[Bound] = [StudentT(), Hoeffding(), EmpiricalBernstein(), ClopperPearson()]
DELTAS, SIZES = (0.05, 0.1, 0.2), (50, 100, 400, 1600)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def _pareto(generator: np.random.Generator, size: int) -> np.ndarray:
    """Pareto with tail index 1.2, scaled and cut at 1: most costs tiny, the mean carried by few."""
    return np.minimum(1.0, 0.01 * (1 + generator.pareto(1.2, size)))


def _pareto_mean() -> float:
    # E[min(1, s X)], X Pareto(a) on [1, inf): s a / (a - 1) * (1 - s^(a-1)) + s^a
    a, s = 1.2, 0.01
    return s * a / (a - 1) * (1 - s ** (a - 1)) + s**a


#: name -> (draws of costs in [0, 1], their true mean)
SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda g, n: np.clip(g.normal(0.5, 0.1, n), 0, 1), 0.5),
    "skewed": (lambda g, n: g.beta(0.3, 5.7, n), 0.05),
    "two-point": (lambda g, n: (g.random(n) < 0.05).astype(float), 0.05),
    "heavy-tailed": (_pareto, _pareto_mean()),
}


def interval(count: int, total: int) -> tuple[float, float]:
    """95 % Clopper-Pearson interval of a share."""
    low = 0.0 if count == 0 else float(stats.beta.ppf(0.025, count, total - count + 1))
    return low, 1.0 if count == total else float(stats.beta.ppf(0.975, count + 1, total - count))


def share(count: int, total: int) -> str:
    low, high = interval(count, total)
    return f"{count / total:.3f} [{low:.3f}, {high:.3f}]"


# ---- part (a): the test alone ----------------------------------------------------------------------------------------


def failures(shape: str, size: int, repetitions: int) -> dict[tuple[str, float], int]:
    """Number of tests that returned an unsafe candidate, by bound and delta."""
    draw, mean = SHAPES[shape]
    threshold, generator = mean * (1 - 1e-9), np.random.default_rng([size, len(shape)])
    counts: dict[tuple[str, float], int] = {}
    for _ in range(repetitions):
        costs = torch.from_numpy(draw(generator, size))
        for bound in BOUNDS:
            if isinstance(bound, ClopperPearson) and shape != "two-point":
                continue
            for delta in DELTAS:
                key = (bound.name, delta)
                counts[key] = counts.get(key, 0) + (bound(costs, delta) <= threshold)
    return counts


def statistics(repetitions: int, out: str) -> None:
    print(
        f"\nReturned although unsafe, share of {repetitions} tests [95 % interval]; "
        "* above delta beyond the interval.\n"
    )
    print("| costs | m | delta | " + " | ".join(bound.name for bound in BOUNDS) + " |\n|" + "---|" * (3 + len(BOUNDS)))
    table: dict[str, dict[int, dict[tuple[str, float], int]]] = {}
    for shape in SHAPES:
        table[shape] = {size: failures(shape, size, repetitions) for size in SIZES}
        for size in SIZES:
            for delta in DELTAS:
                cells = []
                for bound in BOUNDS:
                    count = table[shape][size].get((bound.name, delta))
                    cells.append(
                        "-"
                        if count is None
                        else share(count, repetitions) + (" *" if interval(count, repetitions)[0] > delta else "")
                    )
                print(f"| {shape} | {size} | {delta:g} | " + " | ".join(cells) + " |", flush=True)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axis, shape in zip(figure.subplots(1, len(SHAPES), sharey=True), SHAPES, strict=True):
        for bound in BOUNDS:
            rates = [table[shape][size].get((bound.name, 0.1), math.nan) / repetitions for size in SIZES]
            axis.plot(SIZES, rates, "o-", label=bound.name)
        axis.axhline(0.1, color="#1e8449", linestyle="--", label="delta = 0.1")
        axis.set(xscale="log", xlabel="safety prompts", title=f"{shape} costs")
    figure.axes[0].set_ylabel("unsafe policy returned")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(f"{out}/safety_statistics.png", dpi=110)


# ---- part (b): with training -----------------------------------------------------------------------------------------

THRESHOLD, DELTA, SAFETY_SIZE, ROLLOUTS, FORBIDDEN = 0.2, 0.1, 100, 40, 0.4
#: name -> (settings of the constraint, whether the policy is tested)
METHODS: dict[str, tuple[dict[str, float], bool]] = {
    "HC-RLHF, C1 = C2 = 1": ({"c1": 1, "c2": 1}, True),
    "HC-RLHF, C1 = 1, C2 = 2": ({"c1": 1, "c2": 2}, True),
    "HC-RLHF, C1 = 4, C2 = 2": ({"c1": 4, "c2": 2}, True),
    "Lagrangian without test": ({"c1": 0, "c2": 0}, False),
    "fixed penalty": ({"c1": 0, "c2": 0, "lambda_lr": 0, "lambda_init": 0.5}, False),
    "reward only": ({"c1": 0, "c2": 0, "lambda_lr": 0, "lambda_init": 0}, False),
}


def train(method: str, seed: int) -> dict[str, Any]:
    """One run from the embedded assistant to a returned policy, or none, and the truth about it."""
    settings, tested = METHODS[method]
    # Every run is an experiment of its own, with a ledger of its own.
    folder = tempfile.mkdtemp(prefix="safety-guarantee-")
    os.environ["LIGHTNING_POSTTRAIN_CACHE"] = folder
    started = time.perf_counter()
    L.seed_everything(seed, verbose=False)
    sampling = SamplingParams(20)
    module = HCRLHF(
        PolicyParams("assets/tiny_assistant"),
        Constraint(
            THRESHOLD,
            DELTA,
            **{"lambda_init": 0.3, "lambda_lr": 0.5, "lambda_update": "linear", "lambda_max": 10, "window": 128}
            | settings,
        ),
        rewards=[RecordsReward()],
        cost=RecordsCost(),
        test=SafetyTest(skip=not tested),
        batch=BatchPlan(16, 4),
        sampling=sampling,
        evaluation=Evaluation(sampling=sampling),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.0),
    )
    trainer = L.Trainer(
        max_steps=ROLLOUTS,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=RecordsPrompts(ROLLOUTS * 16, 16, SAFETY_SIZE, FORBIDDEN, seed=derive(method, seed)))
    cost, reward = truth(module, seed)
    shutil.rmtree(folder)
    verdict = module.verdict
    return {
        "method": method,
        "seed": seed,
        "returned": verdict is None or verdict.safe,
        "test_mean": None if verdict is None else verdict.mean,
        "true_cost": cost,
        "true_reward": reward,
        "seconds": time.perf_counter() - started,
    }


def derive(method: str, seed: int) -> int:
    """Prompts of their own for every run, so that every run has a fresh safety split."""
    return seed * 100 + list(METHODS).index(method)


@torch.no_grad()
def truth(module: HCRLHF, seed: int, forbidden: int = 600, allowed: int = 300) -> tuple[float, float]:
    """(expected cost, expected reward) on fresh prompts, measured in the two strata that the distribution mixes."""
    means = []
    for rows in (draw_rows("val", forbidden, 10_000 + seed, 1.0), draw_rows("val", allowed, 20_000 + seed, 0.0)):
        with isolated_rng("truth", seed):
            batch = module.sample(rows, 1, module.sampling)
        means.append((float(RecordsCost()(batch).mean()), float(RecordsReward()(batch).mean())))
    return tuple(FORBIDDEN * a + (1 - FORBIDDEN) * b for a, b in zip(*means, strict=True))  # type: ignore[return-value]


def training(seeds: int, methods: list[str], results: Path) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["method"], r["seed"]) for r in read(results)}
    for seed in range(seeds):
        for method in methods:
            if (method, seed) not in done:
                result = train(method, seed)
                with results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(result, flush=True)


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def passes(test_mean: float, bound: Bound, size: int = SAFETY_SIZE) -> bool:
    """Whether costs of 0 and 1 with this mean pass."""
    ones = round(test_mean * size)
    return bound(torch.tensor([1.0] * ones + [0.0] * (size - ones)), DELTA) <= THRESHOLD


def report(results: Path, out: str) -> None:
    results_read = read(results)
    if not results_read:
        return
    print(
        f"\nThreshold {THRESHOLD}, delta {DELTA}, {SAFETY_SIZE} safety prompts, {ROLLOUTS} rollouts; "
        "shares with their 95 % intervals.\n"
    )
    print(
        "| method | seeds | unsafe policy returned | no solution found | true cost, all candidates "
        "| true reward | unsafe with the exact bound |"
    )
    print("|" + "---|" * 7)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method in METHODS:
        runs = [r for r in results_read if r["method"] == method]
        if not runs:
            continue
        costs = np.array([r["true_cost"] for r in runs])
        unsafe = [r["true_cost"] > THRESHOLD for r in runs]
        returned = [r["returned"] for r in runs]
        unsafe_returned = sum(u and r for u, r in zip(unsafe, returned, strict=True))
        tested = runs[0]["test_mean"] is not None
        exact = (
            sum(u and passes(r["test_mean"], ClopperPearson()) for u, r in zip(unsafe, runs, strict=True))
            if tested
            else None
        )
        print(
            f"| {method} | {len(runs)} | {share(unsafe_returned, len(runs))} | "
            f"{share(len(runs) - sum(returned), len(runs)) if tested else 'never'} | "
            f"{costs.mean():.3f} +- {costs.std(ddof=1):.3f} | "
            f"{np.mean([r['true_reward'] for r in runs]):.3f} | {'-' if exact is None else share(exact, len(runs))} |"
        )
        left.scatter([r["true_reward"] for r in runs], costs, s=14, label=method)
        # The same candidates, tested on other numbers of prompts: the chance that a binomial test passes each of them.
        if tested:
            sizes = (25, 50, 100, 200, 400, 1600)
            rates = []
            for size in sizes:
                passing = max((k for k in range(size + 1) if passes(k / size, StudentT(), size)), default=-1)
                rates.append(1 - float(stats.binom.cdf(passing, size, costs).mean()))
            right.plot(sizes, rates, "o-", label=method)
    left.axhline(THRESHOLD, color="#1e8449", linestyle="--", label="threshold")
    left.set(xlabel="true reward", ylabel="true cost")
    left.legend(fontsize=7)
    right.set(xscale="log", xlabel="safety prompts", ylabel="no solution found")
    right.set_title("the trained candidates, tested on more or fewer prompts", fontsize=9)
    right.legend(fontsize=7)
    figure.savefig(f"{out}/safety_training.png", dpi=110)


def main(
    parts: list[str] = ["statistics", "training"],  # noqa: B006
    repetitions: int = 2000,
    seeds: int = 20,
    methods: list[str] = list(METHODS),  # noqa: B006
    results: str = "runs/safety_guarantee/results.jsonl",
    out: str = "docs/plots",
) -> None:
    """Print the tables and draw the plots."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    Path(out).mkdir(parents=True, exist_ok=True)
    if "statistics" in parts:
        statistics(repetitions, out)
    if "training" in parts:
        training(seeds, methods, Path(results))
    report(Path(results), out)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
