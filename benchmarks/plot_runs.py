"""Plot metrics of tracked runs against rollouts, and print their first, best and last values.

python benchmarks/plot_runs.py --metrics '[val/pass1]' --runs '["GRPO fit seed 0"]' --out docs/plots/grpo.png
"""

import sys
from pathlib import Path

import mlflow
from jsonargparse import auto_cli
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table  # noqa: E402


def main(
    metrics: list[str],
    runs: list[str],
    out: str,
    title: str = "",
    labels: list[str] | None = None,
    lines: dict[str, float] | None = None,
    uri: str = "sqlite:///mlflow.db",
    experiment: str = "lightning-posttrain",
) -> None:
    """Draw one panel per metric with one curve per run; of runs with the same name the latest counts.

    Args:
        metrics: names of the metrics as MLflow stores them (val/pass1).
        runs: run names or ids.
        out: path of the picture.
        title: title of the picture.
        labels: names of the panels.
        lines: metric -> position of a horizontal line, e.g. a threshold.
        uri: tracking store of MLflow.
        experiment: name of the experiment.
    """
    client = mlflow.MlflowClient(uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    all_runs = client.search_runs([experiment_id], order_by=["start_time DESC"])
    figure = Figure(figsize=(4.6 * len(metrics), 3.4), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    rows = []
    for number, (metric, panel) in enumerate(zip(metrics, panels, strict=True)):
        for name in runs:
            run = next(r for r in all_runs if name in (r.info.run_name, r.info.run_id) and metric in r.data.metrics)
            points = sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, metric))
            steps, values = zip(*points, strict=True)
            panel.plot(steps, values, marker="o" if len(steps) < 20 else None, label=run.info.run_name)
            rows.append([metric, run.info.run_name, *(f"{v:.3f}" for v in (values[0], max(values), values[-1]))])
        if lines and metric in lines:
            panel.axhline(lines[metric], color="#1e8449", linestyle="--", label=f"{lines[metric]:g}")
        panel.set_xlabel("rollouts")
        panel.set_ylabel(labels[number] if labels else metric)
        panel.grid(alpha=0.3)
    print(markdown_table(["metric", "run", "first", "best", "last"], rows))
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
