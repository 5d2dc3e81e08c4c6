"""Compare the confidence bounds of the safety test: errors, power, width, and what stopping early saves.

    python benchmarks/safety_bounds.py                   # minutes; rewrites the tables of two pages and the plot

No training. Tests are simulated on costs whose true mean is known:
- at the threshold: a candidate that passes is an error, and at most delta of the tests may be one;
- at 80, 90 and 95 % of the threshold: the share of candidates that pass is the power.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import markdown_table, run_script, use_threads, write_tables  # noqa: E402
from benchmarks.cost_shapes import SHAPES, draws  # noqa: E402
from objectives import Betting, Bound, ClopperPearson, EmpiricalBernstein, Hoeffding, StudentT  # noqa: E402
from objectives.betting import largest_gain, log_capital, plug_in_bets  # noqa: E402

BOUNDS: dict[str, Bound] = {
    "Student's t": StudentT(),
    "Hoeffding": Hoeffding(),
    "empirical Bernstein": EmpiricalBernstein(),
    "Clopper-Pearson": ClopperPearson(),
    "betting": Betting(),
}
DELTAS, SIZES = (0.05, 0.1, 0.2), (50, 100, 400, 1000)
#: true mean as a share of the threshold
RATIOS = (1.0, 0.95, 0.9, 0.8)
SEQUENTIAL_RATIOS = (1.5, 1.0, 0.95, 0.9, 0.8, 0.5)
DELTA, BATCH = 0.1, 32
MARK = "tables of benchmarks/safety_bounds.py"


def passes(name: str, costs: Tensor, delta: float, threshold: float) -> Tensor | None:
    """Whether each row's bound is at most the threshold; None where the bound does not apply."""
    bound, size = BOUNDS[name], costs.shape[-1]
    if isinstance(bound, Betting):
        ordered = costs[:, bound.order(size)]
        capital = log_capital(ordered, plug_in_bets(ordered, delta, size), threshold)
        result = (capital >= math.log(1 / delta)).any(-1)
    elif isinstance(bound, ClopperPearson):
        if not bool(((costs == 0) | (costs == 1)).all()):
            return None
        ones = torch.arange(size + 1)
        uppers = torch.tensor([k / size + bound.width(k / size, 0.0, size, delta) for k in ones.tolist()])
        result = uppers[costs.sum(-1).long()] <= threshold
    else:
        # The widths of the others are linear in the deviation.
        deviation = (costs - costs[:, :1]).std(-1)
        constant = bound.width(0.5, 0.0, size, delta)
        slope = (bound.width(0.5, 0.1, size, delta) - constant) / 0.1
        result = costs.mean(-1) + constant + slope * deviation <= threshold
    for row in range(3):
        assert bool(result[row]) == (bound(costs[row], delta) <= threshold), f"{name}: not what the bound itself says"
    return result


def fixed_tests(repetitions: int) -> dict[tuple[str, int, float, str, float], int]:
    """Number of passed tests by shape, number of prompts, delta, bound and ratio."""
    counts = {}
    for shape in SHAPES:
        for size in SIZES:
            costs, mean = draws(shape, size, repetitions)
            for delta in DELTAS:
                for name in BOUNDS:
                    for ratio in RATIOS if delta == DELTA else RATIOS[:1]:
                        # Just below the border, so that a pass at ratio 1 is an error.
                        result = passes(name, costs, delta, mean / ratio * (1 - 1e-9))
                        if result is not None:
                            counts[shape, size, delta, name, ratio] = int(result.sum())
    return counts


def interval(count: int, total: int) -> tuple[float, float]:
    """95 % Clopper-Pearson interval of a share."""
    low = 0.0 if count == 0 else float(stats.beta.ppf(0.025, count, total - count + 1))
    return low, 1.0 if count == total else float(stats.beta.ppf(0.975, count + 1, total - count))


def short(rate: float, digits: int) -> str:
    """A rate in few characters: .123, 0 or 1."""
    return f"{rate:.{digits}f}".removeprefix("0") if 0 < rate < 1 else f"{rate:g}"


def share(count: int, total: int) -> str:
    """Rate and its 95 % Clopper-Pearson interval."""
    low, high = interval(count, total)
    return f"{short(count / total, 3)} [{short(low, 3)}, {short(high, 3)}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    return markdown_table(head, rows) + "\n"


def error_table(counts: dict[tuple[str, int, float, str, float], int], repetitions: int, delta: float) -> str:
    rows = []
    for shape in SHAPES:
        for size in SIZES:
            cells = [shape, str(size)]
            for name in BOUNDS:
                count = counts.get((shape, size, delta, name, 1.0))
                above = count is not None and interval(count, repetitions)[0] > delta
                cells.append("-" if count is None else share(count, repetitions) + ("\\*" if above else ""))
            rows.append(cells)
    return table(["costs", "prompts", *BOUNDS], rows)


def power_table(counts: dict[tuple[str, int, float, str, float], int], repetitions: int) -> str:
    rows = []
    for shape in SHAPES:
        for size in SIZES:
            cells = [shape, str(size)]
            for name in BOUNDS:
                shares = [counts.get((shape, size, DELTA, name, ratio)) for ratio in RATIOS[:0:-1]]
                cells.append(" / ".join("-" if count is None else short(count / repetitions, 2) for count in shares))
            rows.append([cell.replace("- / - / -", "-") for cell in cells])
    return table(["costs", "prompts", *BOUNDS], rows)


def width_table(repetitions: int) -> str:
    """Mean of bound minus sample mean; in brackets what `Betting.width` expects of the true moments."""
    rows = []
    for shape in SHAPES:
        for size in SIZES:
            costs, mean = draws(shape, size, repetitions)
            cells = [shape, str(size)]
            for bound in BOUNDS.values():
                if isinstance(bound, ClopperPearson) and shape != "two-point":
                    cells.append("-")
                    continue
                cells.append(f"{np.mean([bound(row, DELTA) - float(row.mean()) for row in costs]):.4f}")
            expected = BOUNDS["betting"].width(mean, float(costs.std()), size, DELTA)
            rows.append([*cells[:-1], f"{cells[-1]} ({expected:.4f})"])
    return table(["costs", "prompts", *BOUNDS], rows)


def stopping(costs: Tensor, threshold: float, horizon: int | None) -> tuple[Tensor, Tensor]:
    """(SAFE, responses used) of each row, if one looks after every batch; horizon None: bets without a stated end."""
    size = costs.shape[-1]
    capital = log_capital(costs, plug_in_bets(costs, DELTA, horizon), threshold)
    reached = (capital >= math.log(1 / DELTA)).cummax(-1).values
    used, open_rows = torch.full((len(costs),), size), torch.ones(len(costs), dtype=torch.bool)
    for look in range(BATCH, size, BATCH):
        stop = reached[:, look - 1].clone()
        if horizon is not None:
            gain = largest_gain(costs[:, :look], DELTA, horizon, threshold)
            stop |= capital[:, look - 1] + gain < math.log(1 / DELTA)
        used[open_rows & stop] = look
        open_rows &= ~stop
    # A row that was given up early stays given up: its capital cannot have reached the goal later.
    return reached[:, -1], used


def peeking_t(costs: Tensor, threshold: float) -> Tensor:
    """Whether Student's t passes at any look, which is no valid test."""
    size, passed = costs.shape[-1], torch.zeros(len(costs), dtype=torch.bool)
    for look in [*range(BATCH, size, BATCH), size]:
        part = costs[:, :look]
        deviation = (part - part[:, :1]).std(-1)
        passed |= part.mean(-1) + StudentT().slope(0, 0, look, DELTA) * deviation <= threshold
    return passed


SEQUENTIAL_HEAD = ["costs", "mean / threshold", "SAFE", "responses", "saved", "SAFE, open end", "responses, open end"]


def sequential_rows(repetitions: int, size: int = 1000) -> list[list[str]]:
    """Verdicts and mean numbers of responses; open end: bets that are not tuned to a stated number of responses."""
    rows = []
    for shape in SHAPES:
        costs, mean = draws(shape, size, repetitions)
        ordered = costs[:, Betting().order(size)]
        for ratio in SEQUENTIAL_RATIOS:
            threshold = mean / ratio * (1 - 1e-9)
            if threshold >= 1:
                continue
            safe, used = stopping(ordered, threshold, size)
            fixed = passes("betting", costs, DELTA, threshold)
            assert fixed is not None and torch.equal(safe, fixed), "stopping early changed a verdict"
            open_safe, open_used = stopping(ordered, threshold, None)
            responses, open_responses = float(used.double().mean()), float(open_used.double().mean())
            rows.append(
                [shape, f"{100 * ratio:.0f} %", share(int(safe.sum()), repetitions), f"{responses:.0f}"]
                + [f"{100 * (1 - responses / size):.0f} %", share(int(open_safe.sum()), repetitions)]
                + [f"{open_responses:.0f}"]
                + [share(int(peeking_t(costs, threshold).sum()), repetitions) if ratio >= 1 else ""]
            )
    return rows


def plot(counts: dict[tuple[str, int, float, str, float], int], repetitions: int, path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.6), layout="constrained")
    axes = figure.subplots(2, len(SHAPES), sharey="row", sharex=True)
    for column, shape in enumerate(SHAPES):
        for row, ratio in enumerate((1.0, 0.9)):
            for name in BOUNDS:
                rates = [counts.get((shape, size, DELTA, name, ratio), math.nan) / repetitions for size in SIZES]
                axes[row, column].plot(SIZES, rates, "o-", markersize=3, label=name)
        axes[0, column].axhline(DELTA, color="#1e8449", linestyle="--", label=f"delta = {DELTA}")
        axes[0, column].set(xscale="log", title=shape)
        axes[1, column].set(xlabel="safety prompts")
    axes[0, 0].set_ylabel("errors: SAFE at the threshold")
    axes[1, 0].set_ylabel("power: SAFE at 90 % of it")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main(
    repetitions: int = 2000,
    method_page: str = "docs/hc_rlhf.md",
    page: str = "docs/background/safety_bounds.md",
    picture: str = "docs/plots/safety_bounds.png",
) -> None:
    """Print the tables, write them into the pages between their marks, and draw the plot.

    Args:
        repetitions: simulated tests per cell.
        method_page: the method's page, with errors, power and the sequential test at delta 0.1.
        page: the page about bounds, with the other tables.
        picture: file of the plot.
    """
    use_threads()
    counts = fixed_tests(repetitions)
    cells = {name: [key for key in counts if key[3] == name and key[4] == 1.0] for name in BOUNDS}
    above = {name: sum(interval(counts[key], repetitions)[0] > key[2] for key in keys) for name, keys in cells.items()}
    summary = table(list(BOUNDS), [[f"{above[name]} of {len(keys)}" for name, keys in cells.items()]])
    errors = {
        delta: f"**Errors, delta = {delta:g}**, share of {repetitions:,} tests that pass a candidate at the threshold"
        + ":\n\n"
        + error_table(counts, repetitions, delta)
        for delta in DELTAS
    }
    power = (
        f"**Power, delta = {DELTA:g}**, share of candidates at 80 / 90 / 95 % of the threshold that pass:\n\n"
        + power_table(counts, repetitions)
    )
    stops = f"**Sequential, delta = {DELTA:g}**, at most 1,000 responses, a look after every {BATCH}:\n\n"
    rows = sequential_rows(repetitions)
    shown = "\n".join([errors[DELTA], power, stops + table(SEQUENTIAL_HEAD[:5], [row[:5] for row in rows])])
    parts = [
        "**Summary**, cells whose error rate is above delta beyond its 95 % interval, of all three deltas:\n\n"
        + summary,
        *(text for delta, text in errors.items() if delta != DELTA),
        f"**Width, delta = {DELTA:g}**, mean of bound minus sample mean over 100 tests, for betting the expected one"
        + ":\n\n"
        + width_table(100),
        stops + table([*SEQUENTIAL_HEAD, "SAFE by t at any look"], rows),
    ]
    for file, text in ((method_page, shown), (page, "\n".join(parts))):
        print(text)
        write_tables(file, MARK, text)
    plot(counts, repetitions, picture)
    assert not above["betting"], "betting fails more often than delta"


if __name__ == "__main__":
    run_script(main)
