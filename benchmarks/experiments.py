"""What the benchmarks that train share: runs through main.py, their curves, and results that survive an interruption."""

import json
import sys
from pathlib import Path
from typing import Any

import mlflow

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Found = dict[tuple[str, int], dict[str, Any]]


def curves(uri: str, name: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of the newest run of this name, against rollouts."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("lightning-posttrain")
    assert experiment is not None
    run = client.search_runs(
        [experiment.experiment_id], f"attributes.run_name = '{name}'", order_by=["start_time DESC"]
    )[0]
    wanted = [metric for metric in run.data.metrics if metric.startswith(("train/", "val/"))]
    return {
        metric: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, metric))
        for metric in wanted
    }


def finished(folder: Path, seeds: dict[str, list[int]]) -> Found:
    """What has been measured, by arm and seed, in the order of the arms."""
    paths = {(arm, seed): folder / f"{arm}_{seed}.json" for arm, given in seeds.items() for seed in given}
    return {key: json.loads(path.read_text()) for key, path in paths.items() if path.is_file()}
