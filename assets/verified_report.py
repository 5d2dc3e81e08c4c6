"""The report of rStar-Coder's data step: what came into each stage, what left it, and why the rest did not."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from assets.verified_problem import Checked

STAGES = ("problems", "decontamination", "candidates", "inputs", "outputs", "solutions", "sandbox")
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
