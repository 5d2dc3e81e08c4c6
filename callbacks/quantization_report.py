"""Report of a quantised policy: a table in the terminal and in Markdown, pictures, and all figures as JSON."""

import json
from typing import Any

import lightning as L
from matplotlib.figure import Figure

from support.files import atomic_write_text
from tracking.runs import mlflow_runs, run_folder

Cell = dict[str, Any]
HEAD = [
    "W-A-KV",
    "method",
    "bits/weight",
    "of the model",
    "accuracy (95 %)",
    "change (95 %)",
    "by seed",
    "tokens",
    "perplexity",
    "layer error",
]


class QuantizationReport(L.Callback):
    """After the test of `Quantize`, print its table and write quantization.json, .md and .png.

    They are in the run's folder and, with MLflow, among its artifacts. Does nothing for other modules.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        figures: Any = getattr(pl_module, "figures", None)
        if not trainer.is_global_zero or not isinstance(figures, dict) or "cells" not in figures:
            return
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        text = report_text(figures)
        atomic_write_text(folder / "quantization.json", json.dumps(figures, indent=1))
        atomic_write_text(folder / "quantization.md", text)
        matrix_figure(figures["cells"]).savefig(folder / "quantization.png", dpi=110)
        print(f"\n{text}\nReport: {folder / 'quantization.json'}, .md and .png")
        for client, run in mlflow_runs(trainer):
            for ending in ("json", "md"):
                client.log_artifact(run, str(folder / f"quantization.{ending}"))
            client.log_artifact(run, str(folder / "quantization.png"), "figures")


def report_text(figures: dict[str, Any]) -> str:
    """Title, table of the matrix, table by difficulty, as Markdown."""
    cells: list[Cell] = figures["cells"]
    calibration = figures["calibration"]
    parts = [
        f"# Quantisation of {figures['model']}",
        f"Seeds {figures['seeds']}; {cells[0]['problems']} problems; calibration on {calibration['source']} "
        f"({calibration['tokens']} tokens). Layer error: squared error of the outputs on the calibration data as a "
        "fraction of their squares, mean over the layers.",
        table(HEAD, [matrix_row(cell) for cell in cells]),
    ]
    levels = list(cells[0]["by_difficulty"])
    if levels:
        head = ["W-A-KV", "method", *(f"{level}: accuracy, tokens" for level in levels)]
        rows = [[cell["bits"], cell["method"], *(of_level(cell, level) for level in levels)] for cell in cells]
        parts += ["By difficulty:", table(head, rows)]
    return "\n\n".join(parts) + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, its columns aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def of_level(cell: Cell, level: str) -> str:
    """Accuracy and length of one difficulty."""
    part = cell["by_difficulty"][level]
    return f"{part['accuracy']:.3f}, {part['length']:.0f}"


def matrix_row(cell: Cell) -> list[str]:
    """One row of the table of the matrix."""
    sampled = ["not sampled", "", "", ""]
    if cell["problems"]:
        low, high = cell["accuracy_interval"]
        change_low, change_high = cell["change_interval"]
        sampled = [
            f"{cell['accuracy']:.3f} ({low:.3f} to {high:.3f})",
            f"{cell['change']:+.3f} ({change_low:+.3f} to {change_high:+.3f})",
            " ".join(f"{rate:.3f}" for rate in cell["by_seed"].values()),
            f"{cell['length']:.0f}",
        ]
    return [
        cell["bits"],
        cell["method"],
        f"{cell['bits_per_weight']:.2f}",
        f"{cell['bits_per_weight_of_model']:.2f}",
        *sampled,
        "" if cell["perplexity"] is None else f"{cell['perplexity']:.4g}",
        "" if cell["output_error"] is None else f"{cell['output_error']:.3g}",
    ]


def matrix_figure(cells: list[Cell]) -> Figure:
    """Accuracy of every cell with 95 % intervals, accuracy by difficulty, and the error of every layer."""
    names = [f"{cell['bits']} {cell['method']}" for cell in cells]
    figure = Figure(figsize=(13.5, max(3.6, 0.9 + 0.24 * len(cells))), layout="constrained")
    overall, by_level, by_layer = figure.subplots(1, 3)
    places = range(len(cells))
    for place, cell in zip(places, cells, strict=True):
        if cell["problems"]:
            overall.plot(cell["accuracy_interval"], [place, place], color="C0", linewidth=1)
            overall.plot(cell["accuracy"], place, "o", color="C0", markersize=4)
        elif cell["perplexity"] is not None:
            overall.plot(cell["perplexity"], place, "o", color="C0", markersize=4)
    overall.set_yticks(list(places), names, fontsize=7)
    overall.set_ylim(len(cells) - 0.5, -0.5)
    overall.set_xlabel("accuracy" if cells[0]["problems"] else "perplexity")
    levels = list(cells[0]["by_difficulty"])
    if levels:
        rates = [[cell["by_difficulty"][level]["accuracy"] for level in levels] for cell in cells]
        by_level.imshow(rates, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for place, row in enumerate(rates):
            for column, rate in enumerate(row):
                color = "white" if rate > 0.6 else "black"
                by_level.text(column, place, f"{rate:.2f}", ha="center", va="center", fontsize=7, color=color)
        by_level.set_xticks(range(len(levels)), levels)
        by_level.set_yticks([])
        by_level.set_xlabel("difficulty")
    else:
        by_level.set_axis_off()
    for place, cell in enumerate(cells):
        errors = [layer["output_error"] for layer in cell["layers"] if layer["output_error"] > 0]
        if errors:
            by_layer.plot(errors, [place] * len(errors), "|", color="C1")
    by_layer.set_xscale("log")
    by_layer.set_ylim(len(cells) - 0.5, -0.5)
    by_layer.set_yticks([])
    by_layer.set_xlabel("error of every layer's outputs")
    return figure
