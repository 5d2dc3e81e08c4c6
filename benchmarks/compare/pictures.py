"""Pictures of a report, as SVG text for the page."""

import io
import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.compare.intervals import front, interval
from benchmarks.compare.trials import Result

BLUE, GREY, RED = "#2563a8", "#9aa3ad", "#b23b3b"
STYLE = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929b",
    "svg.hashsalt": "compare",
}


def svg(figure: Figure) -> str:
    """The SVG element of a figure, without the file's header."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def pareto(
    results_by_method: Mapping[str, Sequence[Result]], start: tuple[float, float], titles: Mapping[str, str]
) -> str:
    """Picture of pass@1 against the mean completion length, with both intervals and the Pareto front.

    Args:
        results_by_method: method -> its results.
        start: (length, pass@1) of the initial policy.
        titles: method -> label.
    """
    points, halves = ({}, {}) if math.isnan(sum(start)) else ({"": start}, {"": (math.nan, math.nan)})
    for name, results in results_by_method.items():
        length, accuracy = (
            interval([result.values.get(metric, math.nan) for result in results])
            for metric in ("val/length", "val/pass1")
        )
        if length is not None and accuracy is not None:
            points[name], halves[name] = (length.mean, accuracy.mean), (length.half, accuracy.half)
    if not points:
        return "No method has a pass@1."
    best = front(points)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.8), layout="constrained")
        panel = figure.subplots()
        line = [points[name] for name in best]
        panel.plot(*zip(*line, strict=True), color=BLUE, linewidth=1.4, drawstyle="steps-post", alpha=0.7, zorder=1)
        for name, (x, y) in points.items():
            colour = RED if not name else BLUE if name in best else GREY
            xerr, yerr = (None if math.isnan(half) else half for half in halves[name])
            style: dict[str, Any] = {
                "fmt": "o" if name else "D",
                "color": colour,
                "markersize": 6,
                "elinewidth": 0.7,
                "alpha": 0.9,
            }
            panel.errorbar(x, y, xerr=xerr, yerr=yerr, zorder=2, **style)
        # An interval of two seeds may be wider than everything else. The limits therefore follow the means, and such an
        # interval is cut off at the edge.
        panel.set_xlim(*_limits([x for x, _ in points.values()]))
        panel.set_ylim(*_limits([y for _, y in points.values()]))
        _label(panel, {name: titles.get(name, "start") for name in points}, points)
        panel.set(xlabel="mean completion length in tokens (shorter is cheaper)", ylabel="pass@1 on held-out problems")
        panel.grid(alpha=0.25)
        return svg(figure)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis, with a margin of a quarter of the range."""
    margin = 0.25 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin


def _label(panel, names: Mapping[str, str], points: Mapping[str, tuple[float, float]]) -> None:
    """Write names beside their points, moved up or down where they would overlap."""
    figure = panel.figure
    figure.draw_without_rendering()
    label_boxes: list[tuple[float, float, float, float]] = []  # (left, bottom, right, top) in pixels
    dots = [tuple(panel.transData.transform(point)) for point in points.values()]
    for name, point in sorted(points.items(), key=lambda item: -item[1][1]):
        x, y = panel.transData.transform(point)
        width, height = 5.4 * len(names[name]), 11.0
        right_side = [(7, dy) for dy in (0, 10, -10, 20, -20, 30, -30)]
        left_side = [(-7 - width, dy) for dy in (0, 10, -10, 20, -20, 30, -30, 40, -40)]

        def cost(
            offset: tuple[float, float], x: float = x, y: float = y, width: float = width, height: float = height
        ) -> float:
            left, bottom = x + offset[0], y + offset[1] - height / 2
            overlaps = sum(
                left < box_right and box_left < left + width and bottom < box_top and box_bottom < bottom + height
                for box_left, box_bottom, box_right, box_top in label_boxes
            )
            covered = sum(left - 4 < dx < left + width + 4 and bottom - 3 < dy < bottom + height + 3 for dx, dy in dots)
            return 100 * overlaps + 30 * covered + abs(offset[1]) + (5 if offset[0] < 0 else 0)

        dx, dy = min([*right_side, *left_side], key=cost)
        label_boxes.append((x + dx, y + dy - height / 2, x + dx + width, y + dy + height / 2))
        arrow = {"arrowstyle": "-", "color": "#b8bec5", "linewidth": 0.5} if abs(dy) > 10 else None
        style = {"textcoords": "offset points", "fontsize": 8, "va": "center", "color": "#333333"}
        panel.annotate(names[name], point, xytext=(dx * 0.72, dy * 0.72), arrowprops=arrow, **style)


def learning_curves(
    results_by_method: Mapping[str, Sequence[Result]],
    titles: Mapping[str, str],
    metric: str = "val/pass1",
    beside: str = "grpo",
    against: Literal["tokens", "seconds"] = "tokens",
) -> str:
    """Picture of a metric against generated tokens or seconds, one panel per method.

    A panel has a thin line per seed, their mean, and the mean of the method `beside` in grey, unless the metric is a
    reward, which every method has its own of.
    """
    reward = metric == "val/reward"
    results_by_method = {
        name: results
        for name, results in results_by_method.items()
        if all(metric in (result.curves if against == "tokens" else result.clock) for result in results)
    }
    if not results_by_method:
        return f"No method has a {'reward' if reward else 'pass@1'}."
    columns = 4
    rows = math.ceil(len(results_by_method) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.75 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=not reward, squeeze=False).flatten()
        for panel, (name, results) in zip(panels, results_by_method.items(), strict=False):
            if beside in results_by_method and name != beside and not reward:
                panel.plot(
                    *_mean_curve(results_by_method[beside], metric, against), color=GREY, linewidth=1.2, linestyle="--"
                )
            for result in results:
                panel.plot(*_curve(result, metric, against), color=BLUE, linewidth=0.6, alpha=0.45)
            panel.plot(*_mean_curve(results, metric, against), color=BLUE, linewidth=1.8)
            panel.set_title(titles[name], fontsize=9, loc="left")
            panel.grid(alpha=0.25)
        for panel in panels[len(results_by_method) :]:
            panel.set_visible(False)
        unit = "generated tokens, thousands" if against == "tokens" else "seconds since the start, evaluations included"
        figure.supxlabel(unit, fontsize=9)
        figure.supylabel("reward, each method's own" if reward else "pass@1", fontsize=9)
        return svg(figure)


def _curve(result: Result, metric: str, against: str) -> tuple[list[float], list[float]]:
    """(tokens in thousands or seconds, values) of a run's validations."""
    tokens, values = zip(*result.curves[metric], strict=True)
    places = [count / 1000 for count in tokens] if against == "tokens" else result.clock[metric]
    return list(places), list(values)


def _mean_curve(results: Sequence[Result], metric: str, against: str) -> tuple[list[float], list[float]]:
    """Mean places and mean values per validation, for the validations that every seed has."""
    curves = (_curve(result, metric, against) for result in results)
    places, values = (
        [mean(at_validation) for at_validation in zip(*columns, strict=False)] for columns in zip(*curves, strict=True)
    )
    return places, values
