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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import pages, paper_results  # noqa: E402
from benchmarks.common import markdown_table, run_script  # noqa: E402
from benchmarks.compare.intervals import interval  # noqa: E402
from benchmarks.experiments import fit  # noqa: E402
from benchmarks.figures import arm_styles, draw_seeds, panels  # noqa: E402
from benchmarks.paper_results import (  # noqa: E402
    EXPERIMENTS,
    SEEDS,
    Result,
    at,
    at_equal_tokens,
    command,
    digest,
    keep,
    path_of,
    result_of,
    results,
    tokens,
)
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.papers import ROOT, Claim, Experiment  # noqa: E402

PAGE, PICTURES = ROOT / "docs/papers.md", ROOT / "docs/plots/papers"
HEADING = "start → end (mean of the last three validations), mean ± 95 % interval over seeds"
CLAIMS_HEAD = ("paper", "its claim", "here, difference with its 95 % interval over seeds", "seeds", "agrees")
EQUAL = "grpo, equal tokens"


def run_arm(name: str, arm: str, seed: int) -> None:
    """Train one arm and keep its curves."""
    paper, experiment = EXPERIMENTS[name]
    arguments = command(paper, experiment, arm, seed)
    cli, result = fit(paper_results.RESULTS, f"{name} {arm} {seed}", arguments)
    plan = cli.model.batch
    result |= {"rows": plan.prompts_per_rollout * plan.group_size, "digest": digest(name, arm)}
    atomic_write_text(path_of(name, arm, seed), json.dumps(result))


# ---- the report -----------------------------------------------------------------------------------------------------


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
    """The rows of one paper, also at equal numbers of tokens where its arm and plain GRPO generated unequal ones."""
    experiment = EXPERIMENTS[name][1]
    shown = {arm: results(name, arm) for arm in experiment.arms}
    method = next(iter(shown))
    if cut := at_equal_tokens(name, method):
        for arm, parts in zip((method, "grpo"), cut, strict=True):
            if any(tokens(part)[-1] < tokens(whole)[-1] for part, whole in zip(parts, shown[arm], strict=True)):
                shown[f"{arm}, equal tokens"] = parts
    lines: list[tuple[str, ...]] = []
    for arm, arm_results in shown.items():
        cells = [cell(arm_results, heading, metric) for heading, metric in experiment.columns.items()]
        spent = ""
        if arm_results and arm in experiment.arms:
            spent = f"{mean(tokens(result)[-1] for result in arm_results) / 1000:.0f} k"
        lines.append((name, arm, str(len(arm_results)), "; ".join(filter(None, cells)), spent))
    return lines


def with_rows_of_before(before: str, head: tuple[str, ...], rows: dict[str, list[tuple[str, ...]]]) -> str:
    """A table of all papers; one without results of today's settings keeps the rows that it had on the page."""
    lines: list[tuple[str, ...]] = []
    for name, new in rows.items():
        kept = [tuple(row.split(" | ")) for row in re.findall(rf"^\| ({name} \| .*) \|$", before, re.MULTILINE)]
        lines += new or kept
    return markdown_table(head, lines) + "\n"


def table(before: str) -> str:
    """All rows of the experiments."""
    rows = {
        name: rows_of(name) if any(results(name, arm) for arm in experiment.arms) else []
        for name, (_, experiment) in EXPERIMENTS.items()
    }
    return with_rows_of_before(before, ("paper", "arm", "seeds", HEADING, "tokens"), rows)


def claim_row(name: str, claim: Claim, experiment: Experiment) -> tuple[str, ...] | None:
    """A claim, the difference of its two arms, and whether the interval decides it; None without results."""
    arm = claim.arm or next(iter(experiment.arms))
    ours = theirs = results(name, arm)
    if claim.against == EQUAL:
        ours, theirs = at_equal_tokens(name, arm) or ([], [])
    elif isinstance(claim.against, str) and claim.against != "start":
        theirs = results(name, claim.against)
    if not ours or len(ours) != len(theirs):
        return None
    metric = experiment.columns[claim.column]
    other_metric = experiment.columns[claim.against_column or claim.column]
    ends = [at(result["curves"][metric], 1) for result in ours]
    if isinstance(claim.against, float):
        others = [claim.against] * len(ends)
    else:
        others = [at(result["curves"][other_metric], 0 if claim.against == "start" else 1) for result in theirs]
    seen = interval([end - other for end, other in zip(ends, others, strict=True)])
    assert seen is not None
    if claim.sign == 0:
        agrees = "yes" if seen.low >= -claim.margin else "no" if seen.high < -claim.margin else "not decided"
    else:
        low, high = sorted((claim.sign * seen.low, claim.sign * seen.high))
        agrees = "yes" if low > 0 else "the opposite" if high < 0 else "not shown"
    digits = 3 if max(map(abs, (*ends, *others))) < 10 else 1
    other = claim.against_column or claim.against
    text = (
        f"{claim.column}: {mean(ends):.{digits}f} against {mean(others):.{digits}f} ({other}), "
        f"{seen.mean:+.{digits}f} ({seen.low:+.{digits}f} to {seen.high:+.{digits}f})"
    )
    return (name, claim.text, text, str(len(ours)), agrees)


def claims(before: str) -> str:
    """The table of claims."""
    rows = {
        name: [row for claim in experiment.claims if (row := claim_row(name, claim, experiment))]
        for name, (_, experiment) in EXPERIMENTS.items()
    }
    return with_rows_of_before(before, CLAIMS_HEAD, rows)


def title_of(name: str) -> str:
    """The first claim, and whether it appears, as the picture's title."""
    paper, experiment = EXPERIMENTS[name]
    claim = experiment.claims[0]
    row = claim_row(name, claim, experiment)
    return f"{paper.title}: {claim.text}" + (f" ({row[-1]})" if row else "")


def plot(name: str) -> None:
    """The metrics of the columns against generated tokens."""
    experiment = EXPERIMENTS[name][1]
    styles = arm_styles(list(experiment.arms))
    with panels(list(experiment.columns), title_of(name)) as (figure, axes):
        for panel, metric in zip(axes, experiment.columns.values(), strict=True):
            for arm, style in styles.items():
                curves = []
                for result in results(name, arm):
                    total = [0.0, *tokens(result)]
                    curve = [(total[step + 1] / 1000, value) for step, value in result["curves"].get(metric, [])]
                    if curve and metric.startswith("val/"):  # the first validation comes before the first rollout
                        curve[0] = (0.0, curve[0][1])
                    curves.append(curve)
                draw_seeds(panel, curves, arm, style)
            panel.set_xlabel("generated tokens, thousands")
        axes[0].legend()
        PICTURES.mkdir(parents=True, exist_ok=True)
        figure.savefig(PICTURES / f"{name}.png", dpi=110)


def main(run: bool = True, only: str | None = None, seeds: int = len(SEEDS)) -> None:
    """Run the arms that have no result, then write the table of all that have.

    Args:
        run: False reports only.
        only: one paper's name.
        seeds: how many of each arm.
    """
    if only is not None and only not in EXPERIMENTS:
        raise ConfigError(f"--only names {only!r}; the papers are {', '.join(EXPERIMENTS)}.")
    paper_results.RESULTS.mkdir(parents=True, exist_ok=True)
    chosen = [only] if only else list(EXPERIMENTS)
    arms = [(name, arm, seed) for seed in SEEDS[:seeds] for name in chosen for arm in EXPERIMENTS[name][1].arms]
    for name, arm, seed in arms if run else []:
        if result_of(name, arm, seed) is None:
            print(f"=== {name}: {arm}, seed {seed}", flush=True)
            run_arm(name, arm, seed)
    for name, (_, experiment) in EXPERIMENTS.items():
        keep(name)
        if all(results(name, arm) for arm in experiment.arms):
            plot(name)
    page = PAGE.read_text()
    for mark, make in (("results", table), ("claims", claims)):
        before, begin, rest = page.partition(f"<!-- {mark} -->\n")
        rows, end, after = rest.partition(f"<!-- end of {mark} -->")
        print(written := make(rows))
        page = before + begin + written + end + after
    atomic_write_text(PAGE, page)
    pages.main()


if __name__ == "__main__":
    run_script(main)
