"""Shared parts of the benchmarks that train: runs through main.py, their curves, and results kept on disk."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import mlflow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from main import main as command_line  # noqa: E402

Results = dict[tuple[str, int], dict[str, Any]]  # (arm, seed) -> what was measured


def curves(uri: str, name: str) -> dict[str, list[tuple[int, float]]]:
    """Every train/ and val/ metric of the latest run of this name, as (rollout, value) in order.

    Args:
        uri: tracking store of MLflow.
        name: name of the run.
    """
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("lightning-posttrain")
    assert experiment is not None
    run = client.search_runs(
        [experiment.experiment_id], f"attributes.run_name = '{name}'", order_by=["start_time DESC"]
    )[0]
    metrics = [metric for metric in run.data.metrics if metric.startswith(("train/", "val/"))]
    return {
        metric: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, metric))
        for metric in metrics
    }


def fit(folder: Path, name: str, arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """Train by `main.py fit`. Returns (the command line's object, {"minutes", "curves"}).

    Args:
        folder: folder of the runs and of their tracking store, mlflow.db.
        name: name of the run.
        arguments: arguments of the command line after `fit`.
    """
    uri, started = f"sqlite:///{folder}/mlflow.db", time.perf_counter()
    tracking = [f"--trainer.logger.init_args.tracking_uri={uri}", f"--trainer.logger.init_args.run_name={name}"]
    cli = command_line(["fit", *arguments, *tracking, f"--trainer.default_root_dir={folder}"])
    return cli, {"minutes": (time.perf_counter() - started) / 60, "curves": curves(uri, name)}


def validate(folder: Path, arguments: list[str]) -> Any:
    """Evaluate by `main.py validate`, without tracking. Returns the command line's object."""
    settings = ["--trainer.logger=false", f"--trainer.default_root_dir={folder}"]
    return command_line(["validate", *arguments, *settings])


def result_path(folder: Path, arm: str, seed: int) -> Path:
    """The file of one result."""
    return folder / f"{arm}_{seed}.json"


def finished(folder: Path, seeds: dict[str, list[int]]) -> Results:
    """The results on disk by arm and seed, in the order of the arms.

    Args:
        seeds: arm -> seeds.
    """
    paths = {(arm, seed): result_path(folder, arm, seed) for arm, arm_seeds in seeds.items() for seed in arm_seeds}
    return {key: json.loads(path.read_text()) for key, path in paths.items() if path.is_file()}
