"""The pictures of a report, as SVG text that goes into the page."""

import io
import math
from collections.abc import Mapping, Sequence
from statistics import mean

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
    """The picture without the file's head."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def pareto(found: Mapping[str, Sequence[Result]], start: tuple[float, float], titles: Mapping[str, str]) -> str:
    """pass@1 against the mean length of a completion, with both intervals; the front joins what nothing beats in both."""
    points, halves = {"": start}, {"": (math.nan, math.nan)}
    for name, results in found.items():
        length, right = (
            interval([result.values[metric] for result in results]) for metric in ("val/length", "val/pass1")
        )
        if length is not None and right is not None:
            points[name], halves[name] = (length.mean, right.mean), (length.half, right.half)
    best = front(points)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.8), layout="constrained")
        panel = figure.subplots()
        line = [points[name] for name in best]
        panel.plot(*zip(*line, strict=True), color=BLUE, linewidth=1.4, drawstyle="steps-post", alpha=0.7, zorder=1)
        for name, (x, y) in points.items():
            colour = RED if not name else BLUE if name in best else GREY
            across, up = (None if math.isnan(half) else half for half in halves[name])
            panel.errorbar(
                x,
                y,
                xerr=across,
                yerr=up,
                fmt="D" if not name else "o",
                color=colour,
                markersize=6,
                elinewidth=0.7,
                alpha=0.9,
                zorder=2,
            )
        # An interval of two seeds may be wider than everything else; the picture is of the means, and such an interval leaves it at its edge.
        for limit, values in (
            (panel.set_xlim, [x for x, _ in points.values()]),
            (panel.set_ylim, [y for _, y in points.values()]),
        ):
            room = 0.25 * (max(values) - min(values)) or 0.05
            limit(min(values) - room, max(values) + room)
        _label(panel, {name: titles.get(name, "start") for name in points}, points)
        panel.set(
            xlabel="mean length of a completion, tokens (shorter is cheaper)", ylabel="pass@1 on held-out problems"
        )
        panel.grid(alpha=0.25)
        return svg(figure)


def _label(panel, names: Mapping[str, str], points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside their points, moved up or down where they would lie on one another."""
    figure = panel.figure
    figure.draw_without_rendering()
    taken: list[tuple[float, float, float, float]] = []
    dots = [tuple(panel.transData.transform(point)) for point in points.values()]
    for name, point in sorted(points.items(), key=lambda item: -item[1][1]):
        x, y = panel.transData.transform(point)
        width, height = 5.4 * len(names[name]), 11.0
        options = [(7, dy) for dy in (0, 10, -10, 20, -20, 30, -30)] + [
            (-7 - width, dy) for dy in (0, 10, -10, 20, -20, 30, -30, 40, -40)
        ]

        def cost(
            option: tuple[float, float], x: float = x, y: float = y, width: float = width, height: float = height
        ) -> float:
            left, low = x + option[0], y + option[1] - height / 2
            hidden = sum(
                left < east and west < left + width and low < north and south < low + height
                for west, south, east, north in taken
            )
            covered = sum(left - 4 < dx < left + width + 4 and low - 3 < dy < low + height + 3 for dx, dy in dots)
            return 100 * hidden + 30 * covered + abs(option[1]) + (5 if option[0] < 0 else 0)

        dx, dy = min(options, key=cost)
        taken.append((x + dx, y + dy - height / 2, x + dx + width, y + dy + height / 2))
        far = abs(dy) > 10
        panel.annotate(
            names[name], point, xytext=(dx * 0.72, dy * 0.72), textcoords="offset points", fontsize=8, va="center", color="#333333",
            arrowprops={"arrowstyle": "-", "color": "#b8bec5", "linewidth": 0.5} if far else None,
        )  # fmt: skip


def learning_curves(
    found: Mapping[str, Sequence[Result]], titles: Mapping[str, str], metric: str = "val/pass1", beside: str = "grpo"
) -> str:
    """A panel a method: pass@1 against generated tokens, a thin line a seed and their mean; GRPO's mean in grey behind each."""
    columns = 4
    rows = math.ceil(len(found) / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.75 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for panel, (name, results) in zip(panels, found.items(), strict=False):
            if beside in found and name != beside:
                panel.plot(*_mean_curve(found[beside], metric), color=GREY, linewidth=1.2, linestyle="--")
            for result in results:
                panel.plot(*_thousands(result.curves[metric]), color=BLUE, linewidth=0.6, alpha=0.45)
            panel.plot(*_mean_curve(results, metric), color=BLUE, linewidth=1.8)
            panel.set_title(titles[name], fontsize=9, loc="left")
            panel.grid(alpha=0.25)
        for panel in panels[len(found) :]:
            panel.set_visible(False)
        figure.supxlabel("generated tokens, thousands", fontsize=9)
        figure.supylabel("pass@1", fontsize=9)
        return svg(figure)


def _thousands(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [tokens / 1000 for tokens, _ in curve], [value for _, value in curve]


def _mean_curve(results: Sequence[Result], metric: str) -> tuple[list[float], list[float]]:
    """Mean of tokens and values, validation by validation, as far as every seed has them."""
    curves = [result.curves[metric] for result in results]
    steps = [list(points) for points in zip(*(_thousands_pairs(curve) for curve in curves), strict=False)]
    return [mean(x for x, _ in points) for points in steps], [mean(y for _, y in points) for points in steps]


def _thousands_pairs(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(tokens / 1000, value) for tokens, value in curve]
