"""Train all methods on one task and write a report; runs that were made before with the same settings are not repeated.

    python -m benchmarks.compare                                     # every paper's method, three seeds
    python -m benchmarks.compare --methods '[grpo, laser]' --seeds 1 # some of them
    python -m benchmarks.compare --objectives true                   # also the objectives of configs/objectives
    python -m benchmarks.compare --run false                         # the report only

Runs are children of one run in the MLflow experiment "compare". The report is runs/compare/report.html, and an artifact
of that run.
"""

import os
import time
from pathlib import Path
from statistics import mean

from benchmarks.common import run_script
from benchmarks.compare.methods import HELP_DESK, METHODS, OBJECTIVES
from benchmarks.compare.report import Report
from benchmarks.compare.trials import FORKS, Comparison, Result
from support.errors import ConfigError
from support.files import atomic_write_text
from support.papers import Paper

FOLDER = Path("runs/compare")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the runs: small models are slower on several threads


def chosen(methods: list[str] | None, objectives: bool) -> dict[str, Paper]:
    """The methods to compare, by name; all papers' methods if `methods` is None."""
    known = METHODS | OBJECTIVES
    if unknown := [name for name in methods or [] if name not in known]:
        raise ConfigError(f"--methods has {unknown[0]!r}, which is not a method; choose from {', '.join(known)}.")
    return {name: known[name] for name in methods} if methods else METHODS | (OBJECTIVES if objectives else {})


def main(
    methods: list[str] | None = None,
    seeds: int = 3,
    tokens: int = 120_000,
    objectives: bool = False,
    hc_rlhf: bool = True,
    run: bool = True,
    ui: str = "http://127.0.0.1:5000",
) -> None:
    """Make the runs without a result, then report on all results.

    Args:
        methods: names of the methods; all papers' methods by default.
        seeds: number of seeds per method.
        tokens: number of generated tokens per run.
        objectives: whether to add the objectives of configs/objectives.
        hc_rlhf: whether to add HC-RLHF on its own task.
        run: whether to train; False reports only.
        ui: address of `make ui`, for links.
    """
    if seeds < 1 or tokens < 1:
        raise ConfigError(f"--seeds is {seeds} and --tokens is {tokens}; both must be at least 1.")
    if not Path("configs/compare.yaml").is_file():
        raise ConfigError("configs/compare.yaml is missing here; run this command in the root of the repository.")
    compared = chosen(methods, objectives)
    everything = compared | ({"hc_rlhf": HELP_DESK} if hc_rlhf else {})
    comparison = Comparison(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"), tokens, FOLDER)
    failed: list[str] = []
    if run:
        # Load all code at once, so that an edit during the comparison does not change half of its runs.
        FORKS.set_forkserver_preload(["__main__", "benchmarks.compare.trials", "main"])
        runs = [(name, seed) for seed in range(seeds) for name in everything]
        missing = [(name, seed) for name, seed in runs if comparison.finished(name, everything[name], seed) is None]
        print(f"{len(runs)} runs, of which {len(runs) - len(missing)} were made before.", flush=True)
        for count, (name, seed) in enumerate(missing, start=1):
            began = time.monotonic()
            succeeded = comparison.train(name, everything[name], seed)
            outcome = f"{'' if succeeded else 'FAILED after '}{time.monotonic() - began:.0f} s"
            print(f"[{count}/{len(missing)}] {name}, seed {seed}: {outcome}", flush=True)
            if not succeeded:
                failed.append(f"{name}, seed {seed} (see {comparison.log(name, seed)})")
    results_by_method = {name: results(comparison, name, method, seeds) for name, method in everything.items()}
    write(comparison, results_by_method, compared, ui, failed)
    if failed:
        raise ConfigError(
            f"{len(failed)} runs failed: {'; '.join(failed)}. The report has the others; run the same command again to "
            "repeat the failed runs."
        )


def results(comparison: Comparison, name: str, method: Paper, seeds: int) -> list[Result]:
    """Results of the finished runs of a method."""
    runs = [(seed, comparison.finished(name, method, seed)) for seed in range(seeds)]
    return [comparison.result(run, seed) for seed, run in runs if run is not None]


def write(
    comparison: Comparison,
    results_by_method: dict[str, list[Result]],
    methods: dict[str, Paper],
    ui: str,
    failed: list[str],
) -> None:
    """Write the report as a file and as an artifact, and the means as metrics of the parent run."""
    measured = {name: rows for name, rows in results_by_method.items() if name in methods and rows}
    facts = {
        "methods": str(len(measured)),
        "seeds": str(max((len(rows) for rows in measured.values()), default=0)),
        "generated tokens per run": f"{comparison.tokens:,}",
        "initial policy": "assets/tiny_switcher, 0.8 M weights",
        "problems": "64 for training, 140 held out, 4 samples each",
    }
    page = Report(measured, methods, results_by_method.get("hc_rlhf", []), ui, comparison.experiment, facts, failed)
    path = FOLDER / "report.html"
    atomic_write_text(path, page.html())
    client, parent = comparison.client, comparison.parent
    client.log_artifact(parent, str(path))
    client.set_tag(parent, "mlflow.note.content", page.markdown())
    for name, rows in measured.items():
        client.log_metric(parent, f"pass1/{name}", mean(row.values["val/pass1"] for row in rows))
        client.log_metric(parent, f"length/{name}", mean(row.values["val/length"] for row in rows))
    client.set_terminated(parent, "FAILED" if failed else "FINISHED")
    run_name = client.get_run(parent).info.run_name
    print(f"The report is {path}, and an artifact of the run {run_name!r} in the experiment 'compare'.")


if __name__ == "__main__":
    run_script(main)
