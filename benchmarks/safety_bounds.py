"""Compare the confidence bounds of the safety test: errors, power, width, and what stopping early saves.

    python benchmarks/safety_bounds.py                   # minutes; rewrites the tables of the page and the plot

No training. Tests are simulated on costs whose true mean is known:
- at the threshold: a candidate that passes is an error, and at most delta of the tests may be one;
- at 80, 90 and 95 % of the threshold: the share of candidates that pass is the power.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.safety_guarantee import SHAPES, interval  # noqa: E402
from objectives import Betting, Bound, ClopperPearson, EmpiricalBernstein, Hoeffding, StudentT  # noqa: E402
from objectives.betting import largest_gain, log_capital, plug_in_bets  # noqa: E402

#: costs of the 1,000 safety prompts of `main.py fit --config configs/hc_rlhf.yaml` (seed 0): quantiles in steps of
#: 5 % of the 998 low ones, and the two high ones
LOW_COSTS = (
    *(0.0697, 0.0706, 0.0708, 0.0710, 0.0711, 0.0713, 0.0715, 0.0718, 0.0722, 0.0727, 0.0770),
    *(0.0776, 0.0779, 0.0783, 0.0786, 0.0789, 0.0792, 0.0795, 0.0799, 0.0805, 0.0820),
)
HIGH_COSTS = (0.6877, 0.6978)

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
BEGIN, END = "<!-- tables of benchmarks/safety_bounds.py -->", "<!-- end of the tables -->"


def shipped(high_share: float) -> tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]:
    """Draws from the costs of the shipped run with this share of high ones, and their true mean."""
    levels = np.linspace(0, 1, len(LOW_COSTS))

    def draw(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        low = np.interp(generator.random(size), levels, LOW_COSTS)
        return np.where(generator.random(size) < high_share, generator.choice(HIGH_COSTS, size), low)

    return draw, float((1 - high_share) * np.trapezoid(LOW_COSTS, levels) + high_share * np.mean(HIGH_COSTS))


ALL_SHAPES = SHAPES | {"shipped, 0.2 % high": shipped(0.002), "shipped, 1 % high": shipped(0.01)}


def draws(shape: str, size: int, repetitions: int) -> tuple[Tensor, float]:
    """(costs, repetitions by size; their true mean)."""
    draw, mean = ALL_SHAPES[shape]
    generator = np.random.default_rng([size, list(ALL_SHAPES).index(shape)])
    return torch.from_numpy(draw(generator, (repetitions, size))), mean  # type: ignore[arg-type]


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
    for shape in ALL_SHAPES:
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


def short(rate: float, digits: int) -> str:
    """A rate in few characters: .123, 0 or 1."""
    return f"{rate:.{digits}f}".removeprefix("0") if 0 < rate < 1 else f"{rate:g}"


def share(count: int, total: int) -> str:
    """Rate and its 95 % Clopper-Pearson interval."""
    low, high = interval(count, total)
    return f"{short(count / total, 3)} [{short(low, 3)}, {short(high, 3)}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]) + "\n"


def error_table(counts: dict[tuple[str, int, float, str, float], int], repetitions: int, delta: float) -> str:
    rows = []
    for shape in ALL_SHAPES:
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
    for shape in ALL_SHAPES:
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
    for shape in ALL_SHAPES:
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


def sequential_table(repetitions: int, size: int = 1000) -> str:
    """Verdicts and mean numbers of responses; open end: bets that are not tuned to a stated number of responses."""
    rows = []
    for shape in ALL_SHAPES:
        costs, mean = draws(shape, size, repetitions)
        for ratio in SEQUENTIAL_RATIOS:
            threshold = mean / ratio * (1 - 1e-9)
            if threshold >= 1:
                continue
            ordered = costs[:, Betting().order(size)]
            safe, used = stopping(ordered, threshold, size)
            fixed = passes("betting", costs, DELTA, threshold)
            assert fixed is not None and torch.equal(safe, fixed)
            open_safe, open_used = stopping(ordered, threshold, None)
            rows.append(
                [shape, f"{ratio:.0%}".replace("%", " %"), share(int(safe.sum()), repetitions)]
                + [
                    f"{float(used.double().mean()):.0f} ({float(used.double().mean()) / size - 1:+.0%})".replace(
                        "%", " %"
                    )
                ]
                + [share(int(open_safe.sum()), repetitions), f"{float(open_used.double().mean()):.0f}"]
                + [share(int(peeking_t(costs, threshold).sum()), repetitions) if ratio >= 1 else ""]
            )
    head = ["costs", "mean / threshold", "SAFE", "responses", "SAFE, open end", "responses, open end"]
    return table([*head, "SAFE by t at any look"], rows)


def plot(counts: dict[tuple[str, int, float, str, float], int], repetitions: int, path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.6), layout="constrained")
    axes = figure.subplots(2, len(ALL_SHAPES), sharey="row", sharex=True)
    for column, shape in enumerate(ALL_SHAPES):
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
    page: str = "docs/background/safety_bounds.md",
    picture: str = "docs/plots/safety_bounds.png",
) -> None:
    """Print the tables, write them into the page between its two marks, and draw the plot."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    counts = fixed_tests(repetitions)
    cells = {name: [key for key in counts if key[3] == name and key[4] == 1.0] for name in BOUNDS}
    above = {name: sum(interval(counts[key], repetitions)[0] > key[2] for key in keys) for name, keys in cells.items()}
    summary = [f"{above[name]} of {len(keys)}" for name, keys in cells.items()]
    parts = ["**Summary**, cells whose error rate is above delta beyond its 95 % interval, of all three deltas:\n"]
    parts.append(table(list(BOUNDS), [summary]))
    for delta in DELTAS:
        parts.append(
            f"**Errors, delta = {delta:g}**, share of {repetitions:,} tests that pass a candidate at the threshold:\n"
        )
        parts.append(error_table(counts, repetitions, delta))
    parts.append(f"**Power, delta = {DELTA:g}**, share of candidates at 80 / 90 / 95 % of the threshold that pass:\n")
    parts.append(power_table(counts, repetitions))
    parts.append(
        f"**Width, delta = {DELTA:g}**, mean of bound minus sample mean over 100 tests, for betting the expected one:\n"
    )
    parts.append(width_table(100))
    parts.append(f"**Sequential, delta = {DELTA:g}**, at most 1,000 responses, a look after every {BATCH}:\n")
    parts.append(sequential_table(repetitions))
    text = "\n".join(parts)
    print(text)
    plot(counts, repetitions, picture)
    file = Path(page)
    before, _, rest = file.read_text().partition(BEGIN)
    file.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
