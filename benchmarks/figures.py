"""The look of every learning curve in docs/: a mean over seeds, the band of its interval, the runs faint behind it.

Colours belong to arms, so that plain GRPO is grey and the paper's arm is blue on every page; each arm also has a dash
pattern of its own, and the colours differ in lightness, so that a print in grey can be read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student

STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a929b",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}
#: (colour, dashes) of the first arm, which is the method, and of further ones; from dark to light
ARMS = (
    ("#12457d", "-"),
    ("#b8442e", (0, (5, 1.5))),
    ("#3f8f4f", (0, (2, 1.2))),
    ("#7a4fa3", (0, (7, 1.5, 1.5, 1.5))),
    ("#c98a12", (0, (1, 1))),
    ("#2aa1a1", (0, (4, 1, 1, 1, 1, 1))),
)
#: plain GRPO, beside which the papers' methods are measured
BASELINE = ("#7b848e", (0, (3, 1.5)))
Curve = Sequence[tuple[float, float]]


def arm_styles(arms: Sequence[str], baseline: str = "grpo") -> dict[str, dict[str, Any]]:
    """Colour and dashes of each arm, in the order of the arms."""
    others = [arm for arm in arms if arm != baseline]
    chosen = {arm: ARMS[number % len(ARMS)] for number, arm in enumerate(others)}
    looks = {arm: BASELINE if arm == baseline else chosen[arm] for arm in arms}
    return {arm: {"color": color, "linestyle": dashes} for arm, (color, dashes) in looks.items()}


@contextmanager
def panels(
    headings: Sequence[str], title: str, width: float = 4.2, height: float = 3.4
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with at most two panels in a row, since more of them are too small to read on a page.

    Args:
        headings: labels of the vertical axes.
        title: what the figure shows.
    """
    columns = min(len(headings), 2)
    rows = -(-len(headings) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.3), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
        for panel, heading in zip(axes, headings, strict=False):
            panel.set_ylabel(heading)
        for panel in axes[len(headings) :]:
            panel.set_visible(False)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        yield figure, axes[: len(headings)]


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average whose window shrinks at the ends."""
    half = width // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def draw_seeds(panel: Axes, curves: Sequence[Curve], label: str, style: dict[str, Any], smooth_from: int = 30) -> None:
    """The mean of several runs with its 95 % interval (Student's t), and every run in a faint line.

    Runs are interpolated to common places; beyond the end of the shortest one there is no mean.

    Args:
        curves: one per seed, (place, value) in order.
        smooth_from: curves of at least so many points are smoothed over a tenth of them; the faint lines are not.
    """
    known = [curve for curve in curves if curve]
    if not known:
        return
    for curve in known:
        panel.plot(*zip(*curve, strict=True), color=style["color"], linewidth=0.6, alpha=0.3)
    end = min(curve[-1][0] for curve in known)
    places = np.unique([x for curve in known for x, _ in curve if x <= end])
    rows = []
    for curve in known:
        x, y = np.array(curve, dtype=float).T
        rows.append(np.interp(places, x, smoothed(y, len(y) // 10) if len(y) >= smooth_from else y))
    values = np.stack(rows)
    mean = values.mean(0)
    panel.plot(places, mean, label=label, linewidth=1.8, **style)
    if len(known) > 1:
        half = student.ppf(0.975, len(known) - 1) * values.std(0, ddof=1) / len(known) ** 0.5
        panel.fill_between(places, mean - half, mean + half, color=style["color"], alpha=0.13, linewidth=0)
    # An interval of few seeds may be wider than everything else; the limits follow the runs of all arms so far.
    low, high = min(y for curve in known for _, y in curve), max(y for curve in known for _, y in curve)
    is_first = len(panel.lines) == len(known) + 1
    bottom, top = (low, high) if is_first else panel.get_ylim()
    margin = 0.06 * ((max(top, high) - min(bottom, low)) or 1.0)
    panel.set_ylim(min(bottom, low - margin), max(top, high + margin))
