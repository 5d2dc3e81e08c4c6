"""Plot metrics of tracked runs against rollouts, and print their first, best and last values.

python benchmarks/plot_runs.py --metrics '[val/pass1]' --runs '["GRPO fit seed 0"]' --out docs/plots/grpo.png
"""

from pathlib import Path

import mlflow
from jsonargparse import auto_cli
from matplotlib.figure import Figure


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
    """One panel a metric, one curve a run; of runs with the same name the newest counts.

    Args:
        metrics: as MLflow stores them (val/pass1). runs: run names or ids. out: the picture's path.
        labels: names of the panels. lines: metric -> a horizontal line, e.g. a threshold.
    """
    client = mlflow.MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], order_by=["start_time DESC"])
    figure = Figure(figsize=(4.6 * len(metrics), 3.4), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    print("| metric | run | first | best | last |\n|---|---|---|---|---|")
    for place, metric in enumerate(metrics):
        for name in runs:
            run = next(r for r in found if name in (r.info.run_name, r.info.run_id) and metric in r.data.metrics)
            points = sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, metric))
            steps, values = zip(*points, strict=True)
            panels[place].plot(steps, values, marker="o" if len(steps) < 20 else None, label=run.info.run_name)
            print(f"| {metric} | {run.info.run_name} | {values[0]:.3f} | {max(values):.3f} | {values[-1]:.3f} |")
        if lines and metric in lines:
            panels[place].axhline(lines[metric], color="#1e8449", linestyle="--", label=f"{lines[metric]:g}")
        panels[place].set_xlabel("rollouts")
        panels[place].set_ylabel(labels[place] if labels else metric)
        panels[place].grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
