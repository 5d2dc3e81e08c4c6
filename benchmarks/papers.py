"""The effect of each paper beside plain GRPO: same start, prompts and rollouts, and at equal numbers of tokens.

python benchmarks/papers.py                   # runs what has no result yet, then writes docs/papers.md and its pictures
python benchmarks/papers.py --only laser      # one paper
python benchmarks/papers.py --run false       # the report only

The arms stand in the papers' blocks of facts (support/papers.py). Each run goes through main.py; its curves land in
runs/papers/<paper>_<arm>_<seed>.json, so that an interrupted benchmark goes on where it stopped.
"""

import json
import math
import re
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import pages  # noqa: E402
from benchmarks.common import markdown_table, run_script  # noqa: E402
from benchmarks.compare.intervals import interval  # noqa: E402
from benchmarks.experiments import fit, result_path  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.papers import ROOT, Experiment, Paper, all_papers, flags  # noqa: E402

RESULTS = Path("runs/papers")
PAGE, PICTURES = ROOT / "docs/papers.md", ROOT / "docs/plots/papers"
SEEDS = (0, 1, 2)
HEADING = "start → end (mean of the last three validations), mean ± 95 % interval over seeds"
EXPERIMENTS: dict[str, tuple[Paper, Experiment]] = {
    name: (paper, paper.experiment) for name, paper in all_papers().items() if paper.experiment
}
Curve = list[tuple[int, float]]
Result = dict[str, Any]


def command(paper: Paper, experiment: Experiment, arm: str) -> list[str]:
    """The configurations and settings of an arm."""
    settings = dict(experiment.arms[arm])
    configs = settings.pop("config", paper.configs)
    return [*(f"--config=configs/{name}.yaml" for name in configs), *flags(settings)]


def run_arm(name: str, arm: str, seed: int) -> None:
    """Train one arm and keep its curves."""
    paper, experiment = EXPERIMENTS[name]
    common = {
        "seed_everything": seed,
        "trainer.max_steps": experiment.rollouts,
        "trainer.val_check_interval": experiment.validate_every,
    }
    cli, result = fit(RESULTS, f"{name} {arm} {seed}", [*command(paper, experiment, arm), *flags(common)])
    plan = cli.model.batch
    result["rows"] = plan.prompts_per_rollout * plan.group_size
    atomic_write_text(path_of(name, arm, seed), json.dumps(result))


def path_of(name: str, arm: str, seed: int) -> Path:
    return result_path(RESULTS, f"{name}_{arm}", seed)


def results(name: str, arm: str) -> list[Result]:
    """Those of the seeds that have run."""
    paths = [path_of(name, arm, seed) for seed in SEEDS]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


# ---- the report -----------------------------------------------------------------------------------------------------


def tokens(result: Result) -> list[float]:
    """Generated training tokens up to and including each rollout."""
    extra = dict(result["curves"].get("train/extra_tokens", result["curves"].get("train/laser_monitor_tokens", [])))
    total, sums = 0.0, []
    for step, length in result["curves"]["train/length"]:
        total += length * result["rows"] + extra.get(step, 0.0)
        sums.append(total)
    return sums


def at(curve: Curve, fraction: float) -> float:
    """The value at the beginning (0) or the end (1) of a curve.

    Of validations it is the first, or the mean of the last three; of rollouts the mean of a tenth.
    """
    width = len(curve) // 10 if len(curve) > 20 else 1 if fraction == 0 else min(3, len(curve) // 3 or 1)
    part = curve[:width] if fraction == 0 else curve[-width:]
    return mean(value for _, value in part)


def until(result: Result, budget: float) -> Result:
    """The result as it stood when so many tokens had been generated."""
    rollouts = sum(total <= budget for total in tokens(result))
    cut = {
        metric: [point for point in curve if point[0] < rollouts] or curve[:1]
        for metric, curve in result["curves"].items()
    }
    return result | {"curves": cut}


def with_interval(values: list[float]) -> str:
    """Mean and the half width of Student's 95 % interval over seeds."""
    seen = interval(values)
    if seen is None:
        return ""
    digits = 3 if max(abs(value) for value in values if not math.isnan(value)) < 10 else 1
    return f"{seen.mean:.{digits}f}" + ("" if math.isnan(seen.half) else f" ± {seen.half:.{digits}f}")


def cell(shown: list[Result], heading: str, metric: str) -> str:
    """One column of one arm; empty where nothing was measured."""
    measured = [result["curves"][metric] for result in shown if result["curves"].get(metric)]
    if not measured:
        return ""
    start = with_interval([at(curve, 0) for curve in measured]) if metric.startswith("val/") else ""
    return f"{heading}: {start + ' → ' if start else ''}{with_interval([at(curve, 1) for curve in measured])}"


def rows_of(name: str) -> list[tuple[str, ...]]:
    """The rows of one paper, with plain GRPO at equal tokens where that had generated more."""
    experiment = EXPERIMENTS[name][1]
    shown = {arm: results(name, arm) for arm in experiment.arms}
    method = next(iter(shown))
    if shown["grpo"] and len(shown[method]) == len(shown["grpo"]):
        budgets = [tokens(result)[-1] for result in shown[method]]
        pairs = list(zip(shown["grpo"], budgets, strict=True))
        if any(tokens(result)[-1] > budget for result, budget in pairs):
            shown["grpo, equal tokens"] = [until(result, budget) for result, budget in pairs]
    lines: list[tuple[str, ...]] = []
    for arm, arm_results in shown.items():
        cells = [cell(arm_results, heading, metric) for heading, metric in experiment.columns.items()]
        spent = ""
        if arm_results and arm in experiment.arms:
            spent = f"{mean(tokens(result)[-1] for result in arm_results) / 1000:.0f} k"
        lines.append((name, arm, str(len(arm_results)), "; ".join(filter(None, cells)), spent))
    return lines


def table(before: str) -> str:
    """All rows. A paper without results here keeps the rows that it had, since its runs may be on another machine."""
    rows: list[tuple[str, ...]] = []
    for name, (_, experiment) in EXPERIMENTS.items():
        kept = [tuple(row.split(" | ")) for row in re.findall(rf"^\| ({name} \| .*) \|$", before, re.MULTILINE)]
        rows += rows_of(name) if any(results(name, arm) for arm in experiment.arms) else kept
    return markdown_table(("paper", "arm", "seeds", HEADING, "tokens"), rows) + "\n"


def plot(name: str) -> None:
    """The metrics of the columns against generated tokens, one line per seed."""
    experiment = EXPERIMENTS[name][1]
    figure = Figure(figsize=(3.8 * len(experiment.columns), 3.0), layout="constrained")
    panels = figure.subplots(1, len(experiment.columns), squeeze=False)[0]
    for panel, (heading, metric) in zip(panels, experiment.columns.items(), strict=True):
        for color, arm in enumerate(experiment.arms):
            for number, result in enumerate(results(name, arm)):
                total = [0.0, *tokens(result)]
                curve = [(total[step + 1] / 1000, value) for step, value in result["curves"].get(metric, [])]
                if curve and metric.startswith("val/"):  # the first validation comes before the first rollout
                    curve[0] = (0.0, curve[0][1])
                if curve:
                    label = arm if number == 0 else None
                    panel.plot(*zip(*curve, strict=True), color=f"C{color}", linewidth=1, label=label)
        panel.set(xlabel="generated tokens, thousands", ylabel=heading)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{name}.png", dpi=90)


def main(run: bool = True, only: str | None = None, seeds: int = len(SEEDS)) -> None:
    """Run the arms that have no result, then write the table of all that have.

    Args:
        run: False reports only.
        only: one paper's name.
        seeds: how many of each arm.
    """
    if only is not None and only not in EXPERIMENTS:
        raise ConfigError(f"--only names {only!r}; the papers are {', '.join(EXPERIMENTS)}.")
    RESULTS.mkdir(parents=True, exist_ok=True)
    chosen = [only] if only else list(EXPERIMENTS)
    arms = [(name, arm, seed) for seed in SEEDS[:seeds] for name in chosen for arm in EXPERIMENTS[name][1].arms]
    for name, arm, seed in arms if run else []:
        if not path_of(name, arm, seed).is_file():
            print(f"=== {name}: {arm}, seed {seed}", flush=True)
            run_arm(name, arm, seed)
    for name, (_, experiment) in EXPERIMENTS.items():
        if all(results(name, arm) for arm in experiment.arms):
            plot(name)
    before, begin, rest = PAGE.read_text().partition("<!-- results -->\n")
    rows, end, after = rest.partition("<!-- end of results -->")
    print(written := table(rows))
    atomic_write_text(PAGE, before + begin + written + end + after)
    pages.main()


if __name__ == "__main__":
    run_script(main)
