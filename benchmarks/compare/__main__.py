"""Train all methods on one task and write a report; runs that were made before with the same settings are not repeated.

    python -m benchmarks.compare                                     # every paper's method, three seeds
    python -m benchmarks.compare --methods '[grpo, laser]' --seeds 1 # only these
    python -m benchmarks.compare --methods '[grpo, my_method.yaml]'  # a configuration file as a method
    python -m benchmarks.compare --objectives true                   # also the objectives of configs/objectives
    python -m benchmarks.compare --vary 'model.loss.clip_high=[0.2,0.28,0.4]'   # GRPO with each value
    python -m benchmarks.compare --run false                         # the report only

Runs are children of one run in the MLflow experiment "compare". The report is runs/compare/report.html, with
results.csv and results.json beside it; all three are artifacts of that run.
"""

import contextlib
import io
import os
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import run_script
from benchmarks.compare.export import as_csv, as_json
from benchmarks.compare.methods import HELP_DESK, TASK, arguments, chosen, varied
from benchmarks.compare.report import Report
from benchmarks.compare.trials import FORKS, Comparison, Result
from cli.yaml_files import read_yaml
from support.errors import ConfigError
from support.files import atomic_write_text, shipped
from support.papers import Paper

FOLDER = Path("runs/compare")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the runs: small models are slower on several threads


def main(
    methods: list[str] | None = None,
    seeds: int = 3,
    tokens: int = 120_000,
    objectives: bool = False,
    hc_rlhf: bool = True,
    run: bool = True,
    ui: str = "http://127.0.0.1:5000",
    vary: str | list[str] | None = None,
    baseline: str | None = None,
) -> None:
    """Make the runs without a result, then report on all results.

    Args:
        methods: names of methods and configuration files, and nothing else is trained; all papers' methods by default.
            A file without a module and its rewards is laid over configs/grpo.yaml; laser+mine.yaml is over LASER.
        seeds: number of seeds per method.
        tokens: number of generated tokens per run.
        objectives: whether all methods include the objectives of configs/objectives.
        hc_rlhf: whether all methods include HC-RLHF, on its own task.
        run: whether to train; False reports only.
        ui: address of `make ui`, for links.
        vary: KEY=[VALUE, ...], or a list of these: every method is trained with every combination of the values. The
            methods are then those of --methods, by default GRPO alone.
        baseline: method from which the paired differences are taken; GRPO by default, or the first.
    """
    if seeds < 1 or tokens < 1:
        raise ConfigError(f"--seeds is {seeds} and --tokens is {tokens}; both must be at least 1.")
    everything = arms(methods, vary, objectives, hc_rlhf)
    compared = {name: method for name, method in everything.items() if method is not HELP_DESK}
    if baseline is not None and baseline not in compared:
        raise ConfigError(f"--baseline is {baseline!r}; choose one of the methods: {', '.join(compared)}.")
    comparison = Comparison(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"), tokens, FOLDER)
    failed: list[str] = []
    if run:
        # Load all code at once, so that an edit during the comparison does not change half of its runs.
        FORKS.set_forkserver_preload(["__main__", "benchmarks.compare.trials", "main"])
        runs = [(name, seed) for seed in range(seeds) for name in everything]
        missing = [(name, seed) for name, seed in runs if comparison.finished(name, everything[name], seed) is None]
        for name in dict.fromkeys(name for name, _ in missing) if vary else ():
            check(everything[name])
        print(f"{len(runs)} runs, of which {len(runs) - len(missing)} were made before.", flush=True)
        for count, (name, seed) in enumerate(missing, start=1):
            began = time.monotonic()
            succeeded = comparison.train(name, everything[name], seed)
            outcome = f"{'' if succeeded else 'FAILED after '}{time.monotonic() - began:.0f} s"
            print(f"[{count}/{len(missing)}] {name}, seed {seed}: {outcome}", flush=True)
            if not succeeded:
                failed.append(f"{name}, seed {seed} (see {comparison.log(name, seed)})")
    results_by_method = {name: results(comparison, name, method, seeds, failed) for name, method in everything.items()}
    write(comparison, results_by_method, compared, ui, failed, baseline or "")
    if failed:
        raise ConfigError(
            f"{len(failed)} runs failed: {'; '.join(failed)}. The report has the others; run the same command again to "
            "repeat the failed runs."
        )


def arms(
    methods: list[str] | None, vary: str | list[str] | None, objectives: bool = False, hc_rlhf: bool = True
) -> dict[str, Paper]:
    """The methods to train by name: those chosen, once per value of `vary`, which by default varies GRPO alone."""
    axes = [vary] if isinstance(vary, str) else vary or []
    return varied(chosen(methods or (["grpo"] if axes else None), objectives, hc_rlhf), axes)


def check(method: Paper) -> None:
    """Put a method's configuration together, so that a misspelt --vary ends the command before the first run.

    Raises:
        ConfigError: for a key or a value that does not exist.
    """
    main = sys.modules.get("main") or __import__("main")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main.main(["fit", *arguments(method, 0, 1), "--print_config"])


def results(comparison: Comparison, name: str, method: Paper, seeds: int, failed: list[str]) -> list[Result]:
    """Results of the finished runs of a method; those without measurements are added to `failed`."""
    measured = []
    for seed in range(seeds):
        try:
            if (run := comparison.finished(name, method, seed)) is not None:
                measured.append(comparison.result(run, seed))
        except ConfigError as error:
            failed.append(f"{name}, seed {seed} ({error})")
    return measured


def task_facts(task: dict[str, Any]) -> dict[str, str]:
    """The initial policy and the problems, as the common task's configuration names them."""
    model, data = task["model"]["init_args"], task["data"].get("init_args", {})
    sizes = [
        f"{data[key]} {what}" for key, what in (("train_size", "for training"), ("val_size", "held out")) if key in data
    ]
    samples = model.get("evaluation", {}).get("samples", 1)
    return {
        "initial policy": str(model["policy"]["model"]),
        "problems": ", ".join([str(task["data"]["class_path"]).rpartition(".")[2], *sizes, f"{samples} samples each"]),
    }


def write(
    comparison: Comparison,
    results_by_method: dict[str, list[Result]],
    methods: dict[str, Paper],
    ui: str,
    failed: list[str],
    baseline: str,
) -> None:
    """Write the report and the results as files and as artifacts, and the means as metrics of the parent run."""
    measured = {name: rows for name, rows in results_by_method.items() if name in methods and rows}
    facts = {
        "methods": str(len(measured)),
        "seeds": str(max((len(rows) for rows in measured.values()), default=0)),
        "generated tokens per run": f"{comparison.tokens:,}",
    } | task_facts(read_yaml(shipped(TASK)))
    help_desk = results_by_method.get("hc_rlhf", [])
    page = Report(measured, methods, help_desk, ui, comparison.experiment, facts, failed, baseline)
    path = FOLDER / "report.html"
    client, parent = comparison.client, comparison.parent
    for file, text in (
        (path, page.html()),
        (FOLDER / "results.csv", as_csv(measured, help_desk)),
        (FOLDER / "results.json", as_json(measured, page.titles, page.baseline, facts)),
    ):
        atomic_write_text(file, text)
        client.log_artifact(parent, str(file))
    client.set_tag(parent, "mlflow.note.content", page.markdown())
    for name, rows in measured.items():
        for short, metric in (("pass1", "val/pass1"), ("length", "val/length")):
            # A method whose rewards do not judge correctness has no pass@1.
            if values := [row.values[metric] for row in rows if metric in row.values]:
                client.log_metric(parent, f"{short}/{name}", mean(values))
    client.set_terminated(parent, "FAILED" if failed else "FINISHED")
    run_name = client.get_run(parent).info.run_name
    print(f"The report is {path}, and an artifact of the run {run_name!r} in the experiment 'compare'.")


if __name__ == "__main__":
    run_script(main)
