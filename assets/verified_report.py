"""The report of rStar-Coder's data step: what came into each stage, what left it, and why the rest did not."""

import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from assets.verified_problem import Checked
from support.errors import ConfigError
from support.files import atomic_write_bytes, atomic_write_text

STAGES = ("problems", "decontamination", "candidates", "inputs", "outputs", "solutions", "sandbox")
Row = dict[str, Any]
Report = dict[str, Any]


def stages(results: list[Checked]) -> Report:
    """The report as plain data.

    "stages" counts problems. "inputs" counts inputs by scale, "candidates" the candidates by what became of them,
    "agreement" the problems by the agreement of their candidates in tenths. "oracle" is the fraction of right labels
    where candidates also voted on seed problems.
    """
    left, listed = len(results), []
    for stage in STAGES:
        reasons = Counter(one.reason for one in results if one.stage == stage)
        listed.append({"stage": stage, "in": left, "out": left - reasons.total(), "dropped": dict(reasons)})
        left -= reasons.total()
    scales: dict[str, Counter[str]] = {}
    for one in results:
        for scale, counts in one.scales.items():
            scales.setdefault(scale, Counter()).update(counts)
    candidates = Counter[str]()
    for one in results:
        candidates.update(one.candidates)
    tenths = Counter(int(one.agreement * 10 + 1e-9) / 10 for one in results if one.agreement is not None)
    right, labels = (sum(one.labels[part] for one in results) for part in (0, 1))
    return {
        "stages": listed,
        "inputs": {scale: dict(scales[scale]) for scale in sorted(scales, key=_order)},
        "candidates": {reason or "agree": count for reason, count in candidates.most_common()},
        "agreement": {str(tenth): tenths[tenth] for tenth in sorted(tenths)},
        "oracle": {"labels": labels, "right": right},
        "solutions": sum(len(one.rows) for one in results),
        "verified": sum(row["verified"] for one in results for row in one.rows),
    }


def _order(scale: str) -> tuple[int, str]:
    return (int(scale), "") if scale.isdecimal() else (-1, scale)


def _listed(counts: Iterable[tuple[Any, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts)


def report_text(report: Report) -> str:
    """The report for people, a line per stage."""
    lines = []
    for one in report["stages"]:
        if one["in"] != one["out"] or one["stage"] != "sandbox":
            reasons = _listed(one["dropped"].items())
            lines.append(f"{one['stage']:>16}: {one['in']} in, {one['out']} out{f' ({reasons})' if reasons else ''}")
    for scale, counts in report["inputs"].items():
        total = sum(counts.values())
        lines.append(f"inputs, {scale:>8}: {counts.get('valid', 0)} of {total} valid ({_listed(counts.items())})")
    lines.append(f"{'candidates':>16}: {_listed(report['candidates'].items())}")
    lines.append(f"{'agreement':>16}: {_listed(report['agreement'].items())} (problems)")
    if report["oracle"]["labels"]:
        share = report["oracle"]["right"] / report["oracle"]["labels"]
        lines.append(f"{'vote by oracle':>16}: {share:.1%} of {report['oracle']['labels']} labels are right")
    return "\n".join(lines)


def write_results(out: Path, problems: list[Row], results: dict[str, Checked]) -> None:
    """Write the report, the dropped problems and the kept solutions, and print the report.

    Args:
        out: the parquet file; the others have its name with other endings.
        results: of every problem by its id.

    Raises:
        ConfigError: no solution is kept; report and dropped problems are written.
    """
    rows = [row for problem in problems for row in results[str(problem["id"])].rows]
    report = stages([results[str(problem["id"])] for problem in problems])
    lost = [
        {"id": problem["id"], "prompt": problem["prompt"], "stage": one.stage, "reason": one.reason}
        for problem in problems
        if (one := results[str(problem["id"])]).stage
    ]
    atomic_write_text(out.with_suffix(".report.json"), json.dumps(report, indent=1) + "\n")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lost)
    atomic_write_text(out.with_suffix(".dropped.jsonl"), text)
    print(report_text(report))
    if not rows:
        reasons = Counter(one["reason"] for one in lost).most_common(3)
        told = "; ".join(f"{count} of {len(problems)}: {reason}" for reason, count in reasons)
        raise ConfigError(
            f"no solution is kept ({told}), so {out} is not written. Read {out.with_suffix('.report.json')}, and use "
            "stronger writers, more samples, other generators or a lower --agreement.at_least."
        )
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pyarrow.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    atomic_write_bytes(out, buffer.getvalue())
    kept = sum(bool(one.rows) for one in results.values())
    print(f"{len(rows)} solutions of {kept} problems are in {out}.")
