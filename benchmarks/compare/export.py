"""The results of a comparison as a table of runs (CSV) and as JSON with means, intervals and differences."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.compare.differences import by_seed, gaps
from benchmarks.compare.intervals import Interval, interval
from benchmarks.compare.report import COLUMNS, HELP_COLUMNS, Column
from benchmarks.compare.trials import Result


def name_of(column: Column) -> str:
    """A column's name in files: pass@1, length_tokens, time_s."""
    unit = "" if column.unit in ("", "fraction", "its own") else f"_{column.unit}"
    return f"{column.heading}{unit}".replace(" ", "_").replace(",", "").replace("'s", "")


def as_csv(results_by_method: Mapping[str, Sequence[Result]], help_desk: Sequence[Result] = ()) -> str:
    """One line per run: method, seed, MLflow id, and its value in every column of the report; "" where not measured."""
    groups: list[tuple[str, Sequence[Result], Sequence[Column]]]
    groups = [(name, results, COLUMNS) for name, results in results_by_method.items()]
    groups += [("hc_rlhf", help_desk, HELP_COLUMNS)] if help_desk else []
    names = list(dict.fromkeys(name_of(column) for _, _, columns in groups for column in columns))
    text = io.StringIO()
    writer = csv.DictWriter(text, ["method", "seed", "run", *names], restval="", lineterminator="\n")
    writer.writeheader()
    for method, results, columns in groups:
        for result in results:
            values = {name_of(column): column.value(result) for column in columns}
            known = {name: value for name, value in values.items() if not math.isnan(value)}
            writer.writerow({"method": method, "seed": result.seed, "run": result.run} | known)
    return text.getvalue()


def as_json(
    results_by_method: Mapping[str, Sequence[Result]],
    titles: Mapping[str, str],
    baseline: str,
    facts: Mapping[str, str],
) -> str:
    """Means with intervals, paired differences from the baseline with Holm's adjusted p-values, and all curves."""
    columns = [column for column in COLUMNS if column.start]
    differences = {name_of(column): gaps(results_by_method, column.value, baseline) for column in columns}
    methods: dict[str, Any] = {}
    for name, results in results_by_method.items():
        methods[name] = {
            "title": titles[name],
            "seeds": [result.seed for result in results],
            "runs": [result.run for result in results],
            "values": {
                name_of(column): _numbers(interval(list(by_seed(results, column.value).values()))) for column in COLUMNS
            },
            "difference_to_baseline": {
                column: _numbers(gap.interval) | {"p": _number(gap.p), "p_holm": _number(gap.adjusted)}
                for column, by_method in differences.items()
                if (gap := by_method.get(name)) is not None
            },
            "curves": [
                {
                    "seed": result.seed,
                    "metric": metric,
                    "tokens": [tokens for tokens, _ in points],
                    "seconds": result.clock.get(metric),
                    "values": [_number(value) for _, value in points],
                }
                for result in results
                for metric, points in result.curves.items()
            ],
        }
    return json.dumps({"facts": dict(facts), "baseline": baseline, "methods": methods}, indent=1, allow_nan=False)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(value: Interval | None) -> dict[str, Any]:
    if value is None:
        return {"mean": None, "half": None, "seeds": 0}
    return {"mean": _number(value.mean), "half": _number(value.half), "seeds": value.seeds}
