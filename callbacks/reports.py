"""Reports of tests on multiple-choice questions: a table in the terminal, a picture and a file."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from matplotlib.figure import Figure

from objectives.stress import Interval
from support.files import atomic_write_text
from tracking.runs import mlflow_runs, run_folder

#: columns of the table of a stress test -> their headings
STRESS = {
    "accuracy": "accuracy",
    "change": "change",
    "right_to_wrong": "right to wrong",
    "wrong_to_right": "wrong to right",
}
#: rows of the table of answer uncertainty; groups beyond them are in the file
LONGEST = 40
Table = list[list[str]]


class QuestionReport(L.Callback):
    """After the test of a `StressTest` or an `Uncertainty`, print its table and write NAME.json and NAME.png.

    They are in the run's folder and, with MLflow, among its artifacts. Does nothing for other modules.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kind = {"StressTest": "stress_test", "Uncertainty": "uncertainty"}.get(type(pl_module).__name__)
        if kind is not None and trainer.is_global_zero:
            write_report(trainer, kind, pl_module.report())  # type: ignore[operator]


def write_report(trainer: L.Trainer, kind: str, report: dict[str, Any]) -> None:
    """Print the table of a report and write its file and its picture.

    Args:
        kind: stress_test or uncertainty. report: with `figures` and `answers`.
    """
    figures = report["figures"]
    table, figure = (
        (stress_table(figures), stress_figure(figures))
        if kind == "stress_test"
        else (uncertainty_table(figures), uncertainty_figure(figures))
    )
    folder = run_folder(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / f"{kind}.json", json.dumps(as_json(report), ensure_ascii=False, allow_nan=False))
    figure.savefig(folder / f"{kind}.png", dpi=110)
    print("\n" + aligned(table))
    print(f"Report: {folder / kind}.json, with every answer, and {folder / kind}.png")
    for client, run in mlflow_runs(trainer):
        client.log_artifact(run, str(folder / f"{kind}.json"))
        client.log_artifact(run, str(Path(folder) / f"{kind}.png"), "figures")


def as_json(value: Any) -> Any:
    """Intervals by the names of their numbers."""
    if isinstance(value, Interval):
        return value._asdict()
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    return [as_json(part) for part in value] if isinstance(value, list) else value


def aligned(table: Table) -> str:
    """A table for a terminal, its columns aligned."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def stress_table(figures: dict[str, dict[str, Any]]) -> Table:
    """One row per way of scoring and condition, then the length preference and the statements."""
    rows = [["scoring", "condition", "questions", *STRESS.values()]]
    remarks: Table = []
    for scoring, by_condition in figures.items():
        for condition, of_condition in by_condition.items():
            cells = [str(of_condition.get(name, "")) for name in STRESS]
            rows.append([scoring, condition, str(of_condition["questions"]), *cells])
            for name in ("longest_chosen", "longest_right", "longest_chance", "statements", "all_statements"):
                if name in of_condition:
                    remarks.append([scoring, name.replace("_", " "), "", str(of_condition[name]), "", "", ""])
    return rows + remarks


def stress_figure(figures: dict[str, dict[str, Any]]) -> Figure:
    """Accuracy by condition with 95 % intervals, one colour per way of scoring."""
    conditions = list(dict.fromkeys(name for by_condition in figures.values() for name in by_condition))
    figure = Figure(figsize=(1.6 + 1.1 * len(conditions), 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(figures)
    for number, (scoring, by_condition) in enumerate(figures.items()):
        shown = [
            (place, by_condition[name]["accuracy"]) for place, name in enumerate(conditions) if name in by_condition
        ]
        places = [place + (number - (len(figures) - 1) / 2) * width for place, _ in shown]
        means = [accuracy.mean for _, accuracy in shown]
        errors = [
            [accuracy.mean - accuracy.low for _, accuracy in shown],
            [accuracy.high - accuracy.mean for _, accuracy in shown],
        ]
        axes.bar(places, means, 0.9 * width, yerr=errors, capsize=3, color=f"C{number}", label=f"by {scoring}")
        axes.axhline(by_condition["base"]["accuracy"].mean, color=f"C{number}", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(conditions)), [name.replace("_", "\n") for name in conditions])
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=8)
    return figure


def predictors_of(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the entropies and judges."""
    return [name for name, value in figures["all"].items() if isinstance(value, dict)]


def uncertainty_table(figures: dict[str, dict[str, Any]]) -> Table:
    """One row per group: accuracy, invalid answers, ECE, and ROC-AUC and PR-AUC of every predictor."""
    predictors = predictors_of(figures)
    heads = [f"{area} {name}" for name in predictors for area in ("ROC-AUC", "PR-AUC")]
    rows = [["group", "questions", "accuracy", "invalid", "ECE", *heads]]
    for group, of_group in list(figures.items())[:LONGEST]:
        areas = [_shown(of_group.get(name, {}).get(area)) for name in predictors for area in ("roc_auc", "pr_auc")]
        head = [group, str(of_group["questions"]), _shown(of_group["accuracy"]), f"{of_group['invalid']:.3f}"]
        rows.append([*head, _shown(of_group["ece"]), *areas])
    if len(figures) > LONGEST:
        rows.append([f"and {len(figures) - LONGEST} groups more in the file", *[""] * (len(rows[0]) - 1)])
    return rows


def _shown(interval: Interval | None) -> str:
    return "one class" if interval is None else str(interval)


def uncertainty_figure(figures: dict[str, dict[str, Any]]) -> Figure:
    """ROC-AUC of every predictor by group with 95 % intervals; 0.5 predicts nothing."""
    predictors, groups = predictors_of(figures), list(figures)[:LONGEST]
    figure = Figure(figsize=(6.4, 1.2 + 0.26 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(predictors):
        for place, group in enumerate(groups):
            area = figures[group].get(name, {}).get("roc_auc")
            if area is not None:
                height = place + (number - (len(predictors) - 1) / 2) * 0.18
                axes.plot([area.low, area.high], [height, height], color=f"C{number}", linewidth=1)
                axes.plot(area.mean, height, "o", color=f"C{number}", markersize=3)
        axes.plot([], [], "o-", color=f"C{number}", markersize=3, label=name.replace("_", " "))
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("ROC-AUC against wrong answers")
    axes.legend(fontsize=8)
    return figure
