"""The report of a comparison: a self-contained HTML file."""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.common import markdown_table
from benchmarks.compare.differences import Gap, by_seed, gaps
from benchmarks.compare.intervals import Interval, clear_best, difference, interval
from benchmarks.compare.methods import HELP_DESK, LEFT_OUT
from benchmarks.compare.pictures import learning_curves, pareto
from benchmarks.compare.report_texts import (
    CURVES_CAPTION,
    FRONT_CAPTION,
    HEAD,
    HELP_READING,
    METHOD,
    MORE_CURVES,
    READING,
    STYLE,
    TASK,
)
from benchmarks.compare.trials import Result
from support.papers import Paper


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        heading, unit: the two lines of the header.
        value: a result -> its value in this column.
        start: validation metric that holds the value of the initial policy; "" if it is not measured.
        digits: number of decimal places.
        larger: whether larger is better; None if neither is better.
    """

    heading: str
    unit: str
    value: Callable[[Result], float]
    start: str = ""
    digits: int = 3
    larger: bool | None = None


def metric(name: str) -> Callable[[Result], float]:
    """The last value of a metric, NaN if it was not measured."""
    return lambda result: result.values.get(name, math.nan)


PASS1 = Column("pass@1", "fraction", metric("val/pass1"), "val/pass1", larger=True)
COLUMNS = (
    PASS1,
    Column("pass@4", "fraction", metric("val/pass4"), "val/pass4", larger=True),
    Column("length", "tokens", metric("val/length"), "val/length", 1, larger=False),
    Column("thinks", "fraction", metric("val/thinking_rate"), "val/thinking_rate", 2),
    Column("reward", "its own", metric("val/reward"), digits=2),
    Column("time", "s", lambda result: result.seconds, digits=0),
    Column("tokens", "thousands", lambda result: result.values["train/tokens"] / 1000, digits=1),
    Column("rollouts", "", lambda result: float(result.rollouts), digits=0),
)
HELP_COLUMNS = (
    Column("reward, true", "by rule", metric("val/reward/records_reward"), "val/reward/records_reward"),
    Column("cost, true", "fraction unsafe", metric("val/reward/records_cost"), "val/reward/records_cost"),
    Column("cost, model's", "probability", metric("val/cost"), "val/cost"),
    Column("reward, model's", "", metric("val/reward"), "val/reward", 2),
    Column("length", "tokens", metric("val/length"), "val/length", 1),
    Column("time", "s", lambda result: result.seconds, digits=0),
    Column("tokens", "thousands", lambda result: result.values["train/tokens"] / 1000, digits=1),
)


def number(value: Interval | None, digits: int) -> str:
    """HTML of a mean and the half-width of its interval."""
    if value is None:
        return '<i title="not measured">&ndash;</i>'
    half = "" if math.isnan(value.half) else f" <i>&plusmn; {value.half:.{digits}f}</i>"
    return f"{value.mean:.{digits}f}{half}"


def start_of(name: str) -> Callable[[Result], float]:
    """The first value of a validation metric, that of the initial policy; NaN if it was not measured."""
    return lambda result: result.first.get(name, math.nan)


class Report:
    """The report of all methods.

    Args:
        results_by_method: method -> its finished runs.
        methods: all methods that were compared.
        help_desk: HC-RLHF's runs.
        ui: address of MLflow's pages.
        experiment: id of the experiment there.
        facts: name -> text, shown at the top.
        failed: runs that failed, with the files of their output.
        baseline: the method from which the paired differences are taken; by default GRPO, else the first.
    """

    def __init__(
        self,
        results_by_method: Mapping[str, list[Result]],
        methods: Mapping[str, Paper],
        help_desk: list[Result],
        ui: str,
        experiment: str,
        facts: Mapping[str, str],
        failed: Sequence[str],
        baseline: str = "",
    ) -> None:
        self.results_by_method = {name: results for name, results in results_by_method.items() if results}
        self.methods, self.help_desk = methods, help_desk
        self.ui, self.experiment, self.facts, self.failed = ui, experiment, facts, failed
        self.titles = {name: method.title for name, method in methods.items()}
        self.baseline = baseline or ("grpo" if "grpo" in self.results_by_method else next(iter(methods), ""))
        #: gaps of pass@1, by method
        self.gaps = gaps(self.results_by_method, PASS1.value, self.baseline)
        #: the method whose first validation measures the initial policy under the plain chat template
        self.plain = next(
            (name for name in self.results_by_method if name != "auto_think"), next(iter(self.results_by_method), "")
        )

    def link(self, result: Result) -> str:
        """A link to a run, with its seed as text."""
        address = f"{self.ui}/#/experiments/{self.experiment}/runs/{result.run}"
        return f'<a href="{html.escape(address)}">{result.seed}</a>'

    def start(self, name: str) -> Interval | None:
        """A validation metric of the initial policy."""
        return interval(list(by_seed(self.results_by_method[self.plain], start_of(name)).values()))

    def compare_link(self) -> str:
        """Address of MLflow's page that compares all runs."""
        runs = [result.run for results in self.results_by_method.values() for result in results]
        query = f"runs={json.dumps(runs, separators=(',', ':'))}&experiments={json.dumps([self.experiment])}"
        return html.escape(f"{self.ui}/#/compare-runs?{query}", quote=True)

    def table(self) -> str:
        """All methods on the common task, the most accurate first."""
        best = {
            column.heading: clear_best(
                {name: by_seed(results, column.value) for name, results in self.results_by_method.items()},
                column.larger,
            )
            for column in COLUMNS
            if column.larger is not None and len(self.results_by_method) > 1
        }
        accuracy = {name: by_seed(results, COLUMNS[0].value) for name, results in self.results_by_method.items()}
        order = sorted(
            self.results_by_method, key=lambda name: -sum(accuracy[name].values()) / len(self.results_by_method[name])
        )
        start = [number(self.start(column.start), column.digits) if column.start else "" for column in COLUMNS]
        start.insert(1, "")
        rows = [_row("initial policy", start, "", "start")]
        for name in order:
            cells, classes = [], []
            for column in COLUMNS:
                values = by_seed(self.results_by_method[name], column.value)
                cells.append(number(interval(list(values.values())), column.digits))
                classes.append("best" if best.get(column.heading) == name else self.change(name, column))
            text, kind = self.gap_cell(name)
            cells.insert(1, text)
            classes.insert(1, kind)
            runs = " ".join(self.link(result) for result in self.results_by_method[name])
            paper = self.methods[name].arxiv
            title = html.escape(self.titles[name]) + (f" <i>{paper}</i>" if paper else "")
            rows.append(_row(title, cells, runs, classes=classes))
        beside = Column("difference", f"pass@1 to {self.titles.get(self.baseline, self.baseline)}", PASS1.value)
        return _table([COLUMNS[0], beside, *COLUMNS[1:]], rows, "method", "runs, by seed")

    def gap_cell(self, name: str) -> tuple[str, str]:
        """Text and CSS class of a method's difference from the baseline."""
        gap: Gap | None = self.gaps.get(name)
        if gap is None:
            return ("baseline" if name == self.baseline else number(None, 3)), ""
        half = "" if math.isnan(gap.p) else f" <i>&plusmn; {gap.interval.half:.3f}, p {gap.adjusted:.2g}</i>"
        return f"{gap.interval.mean:+.3f}{half}", ("up" if gap.interval.mean > 0 else "down") if gap.clear else ""

    def change(self, name: str, column: Column) -> str:
        """CSS class of a cell: up or down if it is better or worse than the same run's first value, and the interval of
        the difference excludes zero."""
        if not column.start or column.larger is None:
            return ""
        results = self.results_by_method[name]
        gain = difference(by_seed(results, column.value), by_seed(results, start_of(column.start)))
        if gain is None or not gain.excludes_zero:
            return ""
        return "up" if (gain.mean > 0) == column.larger else "down"

    def markdown(self) -> str:
        """A short table for the description of the parent run."""
        columns = [column for column in COLUMNS if column.start]
        rows = []
        for name, results in self.results_by_method.items():
            cells = []
            for column in columns:
                value = interval(list(by_seed(results, column.value).values()))
                half = "" if value is None or math.isnan(value.half) else f" ± {value.half:.{column.digits}f}"
                cells.append("" if value is None else f"{value.mean:.{column.digits}f}{half}")
            rows.append([self.titles[name], *cells])
        table = markdown_table(["method", *(f"{column.heading}, {column.unit}" for column in columns)], rows)
        return f"Means over seeds ± half of a 95 % interval; report.html has the rest.\n\n{table}"

    def help_table(self) -> str:
        """HC-RLHF before and after training."""

        def mean(value: Callable[[Result], float], digits: int) -> str:
            return number(interval(list(by_seed(self.help_desk, value).values())), digits)

        start = [mean(start_of(column.start), column.digits) if column.start else "" for column in HELP_COLUMNS]
        end = [mean(column.value, column.digits) for column in HELP_COLUMNS]
        runs = " ".join(self.link(result) for result in self.help_desk)
        rows = [_row("initial policy", start, "", "start"), _row(HELP_DESK.title, end, runs)]
        return _table(HELP_COLUMNS, rows, "method", "runs, by seed")

    def html(self) -> str:
        """The page."""
        facts = "".join(
            f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
            for name, value in self.facts.items()
        )
        parts = [
            f"{HEAD}<style>{STYLE}</style>",
            "<h1>Comparison of methods</h1>",
            f'<p class="soft">{TASK}</p>',
            f'<div class="facts">{facts}</div>',
            *([f"<p><b>Failed runs:</b> {html.escape('; '.join(self.failed))}</p>"] if self.failed else []),
        ]
        if self.results_by_method:
            parts += self._results()
        if self.help_desk:
            parts += [
                f"<h2>{HELP_DESK.title}: another task</h2>",
                f"<p>{HELP_READING}</p>",
                f'<div class="scroll">{self.help_table()}</div>',
            ]
        left_out = "".join(f"<li>{html.escape(p.title)}: {html.escape(p.not_compared)}.</li>" for p in LEFT_OUT)
        parts += [f"<h2>Methods left out</h2><ul>{left_out}</ul>", f"<h2>Procedure</h2><p>{METHOD}</p></html>\n"]
        return "\n".join(parts)

    def _results(self) -> list[str]:
        """The table and the pictures of the common task."""
        seeds = max(len(results) for results in self.results_by_method.values())
        length, accuracy = self.start("val/length"), self.start("val/pass1")
        start = (length.mean, accuracy.mean) if length and accuracy else (math.nan, math.nan)
        link = f'<a href="{self.compare_link()}">All of these runs on MLflow\'s compare page</a>'
        return [
            "<h2>Results</h2>",
            f'<div class="scroll">{self.table()}</div>',
            f"<p>{READING.format(seeds=seeds)}</p>",
            f"<p>{link} (while <code>make ui</code> runs).</p>",
            "<h2>Accuracy against length</h2>",
            _figure(pareto(self.results_by_method, start, self.titles), FRONT_CAPTION),
            "<h2>Learning curves</h2>",
            _figure(learning_curves(self.results_by_method, self.titles, beside=self.baseline), CURVES_CAPTION),
            *(
                f"<details><summary>{title}</summary>"
                + _figure(learning_curves(self.results_by_method, self.titles, name, self.baseline, against), note)
                + "</details>"
                for title, name, against, note in MORE_CURVES
            ),
        ]


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _row(title: str, cells: Sequence[str], runs: str, kind: str = "", classes: Sequence[str] | None = None) -> str:
    """A row of a table: title, cells with their CSS classes if any, links to the runs."""
    opening = f'<tr class="{kind}">' if kind else "<tr>"
    if classes is None:
        middle = "".join(f"<td>{cell}</td>" for cell in cells)
    else:
        middle = "".join(f'<td class="{name}">{cell}</td>' for name, cell in zip(classes, cells, strict=True))
    return f"{opening}<td>{title}</td>{middle}<td>{runs}</td></tr>"


def _table(columns: Sequence[Column], rows: Sequence[str], first: str, last: str) -> str:
    """A table with a header of two lines per column."""
    headings = "".join(
        f"<th>{html.escape(c.heading)}<br><small>{html.escape(c.unit) or '&nbsp;'}</small></th>" for c in columns
    )
    head = f"<thead><tr><th>{first}</th>{headings}<th>{last}</th></tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"
