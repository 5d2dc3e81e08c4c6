"""The report: one HTML file that needs nothing else."""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.compare.intervals import Interval, clear_best, difference, interval
from benchmarks.compare.methods import HELP_DESK, LEFT_OUT
from benchmarks.compare.pictures import learning_curves, pareto
from benchmarks.compare.trials import Result
from support.papers import Paper

STYLE = """
:root{--ink:#1f2933;--soft:#5b6773;--line:#e3e7eb;--blue:#2563a8;--good:#1e7a46;--bad:#b23b3b}
*{box-sizing:border-box}body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);max-width:78rem;margin:0 auto;padding:2rem 1.5rem 4rem;background:#fff}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.4rem 0 .5rem}p{max-width:62rem;margin:.4rem 0}.soft,caption{color:var(--soft)}
.facts{display:flex;flex-wrap:wrap;gap:.6rem;margin:1.1rem 0}.facts div{border:1px solid var(--line);border-radius:.5rem;padding:.45rem .8rem}
.facts b{display:block;font-size:.95rem}.facts span{color:var(--soft);font-size:.8rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{font-size:.8rem;font-weight:600;color:var(--soft);border-bottom:2px solid #c7ced5;vertical-align:bottom}th small{font-weight:400}
th:first-child,td:first-child{text-align:left}tbody tr:hover{background:#f6f8fa}tr.start td{background:#faf7f0}
td i{font-style:normal;color:var(--soft);font-size:.85em}.best{font-weight:700;color:var(--good)}.up{color:var(--good)}.down{color:var(--bad)}
a{color:var(--blue);text-decoration:none}a:hover{text-decoration:underline}td a{color:inherit}figure{margin:1rem 0}figure svg{width:100%;height:auto;max-width:60rem}
figcaption{color:var(--soft);font-size:.88rem;max-width:60rem}ul{padding-left:1.2rem}
"""


@dataclass(frozen=True)
class Column:
    """Of the table.

    Args:
        heading, unit: what stands above. metric: in MLflow, or "" for what is not a metric. digits: after the point. larger: whether larger is better, None for neither.
    """

    heading: str
    unit: str
    value: Callable[[Result], float]
    start: str = ""
    digits: int = 3
    larger: bool | None = None


def metric(name: str) -> Callable[[Result], float]:
    return lambda result: result.values.get(name, math.nan)


COLUMNS = (
    Column("pass@1", "share", metric("val/pass1"), "val/pass1", larger=True),
    Column("pass@4", "share", metric("val/pass4"), "val/pass4", larger=True),
    Column("length", "tokens", metric("val/length"), "val/length", 1, larger=False),
    Column("thinks", "share", metric("val/thinking_rate"), "val/thinking_rate", 2),
    Column("reward", "its own", metric("val/reward"), digits=2),
    Column("time", "s", lambda result: result.seconds, digits=0),
    Column("tokens", "thousands", lambda result: result.values["train/tokens"] / 1000, digits=1),
    Column("rollouts", "", lambda result: float(result.rollouts), digits=0),
)
HELP_COLUMNS = (
    Column("reward, true", "by rule", metric("val/reward/records_reward"), "val/reward/records_reward"),
    Column("cost, true", "share unsafe", metric("val/reward/records_cost"), "val/reward/records_cost"),
    Column("cost, model's", "probability", metric("val/cost"), "val/cost"),
    Column("reward, model's", "", metric("val/reward"), "val/reward", 2),
    Column("length", "tokens", metric("val/length"), "val/length", 1),
    Column("time", "s", lambda result: result.seconds, digits=0),
    Column("tokens", "thousands", lambda result: result.values["train/tokens"] / 1000, digits=1),
)


def number(found: Interval | None, digits: int) -> str:
    """Mean and half width."""
    if found is None:
        return '<i title="not measured">&ndash;</i>'
    half = "" if math.isnan(found.half) else f" <i>&plusmn; {found.half:.{digits}f}</i>"
    return f"{found.mean:.{digits}f}{half}"


def by_seed(results: Sequence[Result], value: Callable[[Result], float]) -> dict[int, float]:
    """Seed -> value, without what was not measured."""
    return {result.seed: value(result) for result in results if not math.isnan(value(result))}


def start_of(name: str) -> Callable[[Result], float]:
    return lambda result: result.first.get(name, math.nan)


class Report:
    """Args: found: method -> its finished runs. methods: all that were asked for. help_desk: HC-RLHF's runs. ui: address of MLflow's pages. experiment: there.
    facts: what is said at the top, by name. failed: runs that did not end well, with the place of their output."""

    def __init__(
        self, found: Mapping[str, list[Result]], methods: Mapping[str, Paper], help_desk: list[Result], ui: str, experiment: str,
        facts: Mapping[str, str], failed: Sequence[str],
    ) -> None:  # fmt: skip
        self.found = {name: results for name, results in found.items() if results}
        self.methods, self.help_desk, self.ui, self.experiment, self.facts, self.failed = (
            methods,
            help_desk,
            ui,
            experiment,
            facts,
            failed,
        )
        self.titles = {name: method.title for name, method in methods.items()}
        #: whose first validation is that of the start, in the plain chat template
        self.plain = next((name for name in self.found if name != "auto_think"), next(iter(self.found), ""))

    def link(self, result: Result, text: str) -> str:
        return f'<a href="{html.escape(f"{self.ui}/#/experiments/{self.experiment}/runs/{result.run}")}">{html.escape(text)}</a>'

    def compare_link(self) -> str:
        runs = [result.run for results in self.found.values() for result in results]
        query = f"runs={json.dumps(runs, separators=(',', ':'))}&experiments={json.dumps([self.experiment])}"
        return html.escape(f"{self.ui}/#/compare-runs?{query}", quote=True)

    def table(self) -> str:
        """All methods on the common task, the most accurate first."""
        best = {
            column.heading: clear_best(
                {name: by_seed(results, column.value) for name, results in self.found.items()}, column.larger
            )
            for column in COLUMNS
            if column.larger is not None and len(self.found) > 1
        }
        order = sorted(
            self.found,
            key=lambda name: -sum(by_seed(self.found[name], COLUMNS[0].value).values()) / len(self.found[name]),
        )
        start = [
            number(interval(list(by_seed(self.found[self.plain], start_of(c.start)).values())), c.digits)
            if c.start
            else ""
            for c in COLUMNS
        ]
        rows = [
            f'<tr class="start"><td>start, untrained</td>{"".join(f"<td>{cell}</td>" for cell in start)}<td></td></tr>'
        ]
        for name in order:
            cells = []
            for column in COLUMNS:
                values = by_seed(self.found[name], column.value)
                text = number(interval(list(values.values())), column.digits)
                marks = "best" if best.get(column.heading) == name else self.change(name, column)
                cells.append(f'<td class="{marks}">{text}</td>')
            runs = " ".join(self.link(result, str(result.seed)) for result in self.found[name])
            paper = self.methods[name].arxiv
            title = html.escape(self.titles[name]) + (f" <i>{paper}</i>" if paper else "")
            rows.append(f"<tr><td>{title}</td>{''.join(cells)}<td>{runs}</td></tr>")
        return _table(COLUMNS, rows, "method", "runs, by seed")

    def change(self, name: str, column: Column) -> str:
        """The class of a cell that differs from its own run's start by more than the interval of that difference."""
        if not column.start or column.larger is None:
            return ""
        results = self.found[name]
        found = difference(by_seed(results, column.value), by_seed(results, start_of(column.start)))
        if found is None or not found.excludes_zero:
            return ""
        return "up" if (found.mean > 0) == column.larger else "down"

    def markdown(self) -> str:
        """The table in short, for the description of the parent run."""
        shown = [column for column in COLUMNS if column.start]
        lines = [f"| method | {' | '.join(f'{c.heading}, {c.unit}' for c in shown)} |", "|---" * (len(shown) + 1) + "|"]
        for name, results in self.found.items():
            cells = []
            for column in shown:
                found = interval(list(by_seed(results, column.value).values()))
                half = "" if found is None or math.isnan(found.half) else f" ± {found.half:.{column.digits}f}"
                cells.append("" if found is None else f"{found.mean:.{column.digits}f}{half}")
            lines.append(f"| {self.titles[name]} | {' | '.join(cells)} |")
        return "Means over seeds ± half of a 95 % interval; report.html has the rest.\n\n" + "\n".join(lines)

    def help_table(self) -> str:
        """HC-RLHF before and after."""
        rows = []
        for label, pick in (
            ("start, untrained", lambda c: start_of(c.start) if c.start else None),
            (HELP_DESK.title, lambda c: c.value),
        ):
            cells = [
                ""
                if (value := pick(column)) is None
                else number(interval(list(by_seed(self.help_desk, value).values())), column.digits)
                for column in HELP_COLUMNS
            ]
            runs = (
                " ".join(self.link(result, str(result.seed)) for result in self.help_desk)
                if label == HELP_DESK.title
                else ""
            )
            kind = ' class="start"' if not runs else ""
            rows.append(
                f"<tr{kind}><td>{label}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}<td>{runs}</td></tr>"
            )
        return _table(HELP_COLUMNS, rows, "method", "runs, by seed")

    def html(self) -> str:
        """The page."""
        seeds = max((len(results) for results in self.found.values()), default=0)
        facts = "".join(
            f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
            for name, value in self.facts.items()
        )
        parts = [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Comparison of methods</title><style>{STYLE}</style>',
            "<h1>Comparison of methods</h1>",
            '<p class="soft">Sums of one to five digits, from one start, on the same problems and for the same number of generated tokens.</p>',
            f'<div class="facts">{facts}</div>',
            *([f"<p><b>Did not end well:</b> {html.escape('; '.join(self.failed))}</p>"] if self.failed else []),
        ]
        if self.found:
            first = [
                interval(list(by_seed(self.found[self.plain], start_of(name)).values()))
                for name in ("val/length", "val/pass1")
            ]
            start = (
                (first[0].mean, first[1].mean)
                if first[0] is not None and first[1] is not None
                else (math.nan, math.nan)
            )
            parts += [
                "<h2>Results</h2>",
                f'<div class="scroll">{self.table()}</div>',
                f"<p>{READING.format(seeds=seeds)}</p>",
                f'<p><a href="{self.compare_link()}">All of these runs on MLflow\'s compare page</a> (while <code>make ui</code> runs).</p>',
                "<h2>Accuracy against length</h2>",
                f"<figure>{pareto(self.found, start, self.titles)}<figcaption>Means over seeds with 95 % intervals. The line joins the methods that no other "
                "beats in both; it is drawn through the means, and intervals that overlap mean that the order may be chance.</figcaption></figure>",
                "<h2>Learning curves</h2>",
                f"<figure>{learning_curves(self.found, self.titles)}<figcaption>Thin lines are seeds, the thick one their mean, the dashed grey one GRPO's mean.</figcaption></figure>",
            ]
        if self.help_desk:
            parts += [
                f"<h2>{HELP_DESK.title}: another task</h2>",
                f"<p>{HELP_READING}</p>",
                f'<div class="scroll">{self.help_table()}</div>',
            ]
        left = "".join(f"<li>{html.escape(p.title)}: {html.escape(p.not_compared)}.</li>" for p in LEFT_OUT)
        parts += [f"<h2>What is not here</h2><ul>{left}</ul>", f"<h2>How it was done</h2><p>{METHOD}</p></html>\n"]
        return "\n".join(parts)


def _table(columns: Sequence[Column], rows: Sequence[str], first: str, last: str) -> str:
    heads = "".join(
        f"<th>{html.escape(c.heading)}<br><small>{html.escape(c.unit) or '&nbsp;'}</small></th>" for c in columns
    )
    return (
        f"<table><thead><tr><th>{first}</th>{heads}<th>{last}</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


READING = (
    "Each number is a mean over {seeds} seed(s); &plusmn; is half of Student's 95 % interval of that mean. The seeds differ in what is sampled, not in the problems, so the "
    "intervals say how much would change with other random numbers on these problems, and nothing about other problems. "
    '<span class="up">Green</span> and <span class="down">red</span> are better and worse than the same run\'s start, where the interval of that difference '
    'excludes zero; <span class="best">bold</span> is best of all, where the interval of the difference from every other method excludes zero (no correction '
    "for the number of comparisons). A shorter length counts as better, since it is cheaper. With one seed there are no intervals, and nothing is marked. Rewards are each method's own and do not compare between "
    "methods. Time is that of the whole run on this machine, with its evaluations."
)
HELP_READING = (
    "HC-RLHF needs a cost, so it trains on the records help desk instead, from assets/tiny_assistant, for a quarter of the tokens, since its answers are short; its numbers compare with none "
    "above. True reward and cost come from a rule that training never sees. Its promise needs the safety test, which these runs leave out, because each test uses its prompts up: "
    "<code>make hc-rlhf</code> makes it."
)
METHOD = (
    "Every run is <code>main.py fit</code> with the method's own configuration, then configs/compare.yaml (start, problems, batch, sampling, evaluation), then "
    "callbacks.TokenBudget. Learning rates, rewards, objectives and callbacks are the method's own; thresholds in tokens or rollouts are put in proportion to the task by "
    "the <code>comparison</code> of the method's block of facts. A run ends with the rollout that reaches the budget, so it may exceed it by less than a rollout; completions that a method discards "
    "and samples of its monitors count, AdaptThink's measurement of the start before training does not. This many tokens are few: the table says how fast methods learn at first, not where they end."
)
