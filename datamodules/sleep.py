"""Synthetic sleep reports, a rule base of findings and advice, and a rule-based teacher (SleepCoT, arXiv 2410.16924).

A toy for distillation with rationales. The ranges are rough and the advice is invented: none of it is medical advice.

Values are drawn within plausible ranges, and combinations that do not occur are drawn again (`plausible`). A finding is
a metric outside of its healthy range. Most findings have advice of their own; some pairs of findings have common advice
that replaces both.
"""

import random
from dataclasses import dataclass
from typing import Any

from support.papers import Paper
from support.seeding import derive_seed

Row = dict[str, Any]
Report = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """A metric of a report.

    Args:
        unit: of its values.
        lowest, highest, step: the grid of plausible values.
        healthy: smallest and largest value without a finding.
    """

    unit: str
    lowest: float
    highest: float
    step: float
    healthy: tuple[float, float]

    def values(self) -> list[float]:
        """All plausible values, from low to high."""
        count = round((self.highest - self.lowest) / self.step)
        return [self.lowest + self.step * number for number in range(count + 1)]

    def status(self, value: float) -> str:
        """low, fine or high."""
        return "low" if value < self.healthy[0] else "high" if value > self.healthy[1] else "fine"


METRICS = {
    "sleep": Metric("h", 3.0, 11.0, 0.5, (7.0, 9.0)),
    "latency": Metric("min", 5, 90, 5, (5, 30)),
    "efficiency": Metric("%", 60, 98, 2, (84, 98)),
    "deep": Metric("%", 2, 30, 1, (13, 30)),
    "rem": Metric("%", 5, 35, 1, (15, 35)),
    "hrv": Metric("ms", 10, 110, 5, (25, 110)),
    "pulse": Metric("bpm", 40, 100, 4, (40, 80)),
    "wakes": Metric("", 0, 12, 1, (0, 4)),
}
#: advice for one finding, or for two together
ADVICE: dict[tuple[str, ...], str] = {
    ("hrv low", "pulse high"): "rest day",
    ("sleep low", "latency high"): "morning light",
    ("deep low", "wakes high"): "bedroom check",
    ("efficiency low", "rem low"): "sleep diary",
    ("latency high", "wakes high"): "less caffeine",
    ("sleep low",): "earlier bedtime",
    ("sleep high",): "fixed wake time",
    ("latency high",): "no screens",
    ("efficiency low",): "less time in bed",
    ("deep low",): "cooler room",
    ("rem low",): "no late alcohol",
    ("hrv low",): "slow breathing",
    ("pulse high",): "evening walk",
    ("wakes high",): "quiet room",
}
NOTHING = "keep going"
QUESTION = "what should i do ?"
#: questions about one metric of a report
FOLLOW_UPS = ("is my {} fine ?", "what about my {} ?")
#: questions about the rule base by their order: the last form is for held-out rows
RANGES = ("what range is healthy for {} ?", "healthy {} range ?", "which {} range is healthy ?")
REMEDIES = ("what helps with {} ?", "advice for {} ?", "which advice for {} ?")
TASKS = ("recommend", "follow_up", "knowledge")

#: prompt of a teacher that is a model
INSTRUCTION = (
    "You advise on sleep by this rule base, and by nothing else. Healthy ranges: {ranges}. Advice: {advice}. A pair of "
    "findings with common advice replaces the advice for each; without findings the answer is {nothing!r}. First "
    "reason between <think> and </think>, then answer.\n\n{examples}\n\nInput: {prompt}\nOutput: "
)


def cited(name: str, value: float) -> str:
    """A metric with its value and unit, as reports show it: one word, which a small tokenizer keeps whole."""
    return f"{name}:{shown(value)}{METRICS[name].unit}"


def shown(value: float) -> str:
    """A value without its unit."""
    return f"{value:g}"


def plausible(report: Report) -> bool:
    """Whether the values of a report can occur together.

    Deep and REM sleep leave at least 40 % for light sleep, who wakes often or falls asleep late does not sleep
    efficiently, and a high heart-rate variability does not go with a high pulse.
    """
    awake = report["latency"] + 4 * report["wakes"]  # minutes, with four per time
    in_bed = 60 * report["sleep"] / (report["efficiency"] / 100)
    return (
        report["deep"] + report["rem"] <= 60
        and 60 * report["sleep"] + awake <= in_bed + 45
        and not (report["hrv"] > 70 and report["pulse"] > 80)
    )


def draw_report(rng: random.Random, findings: int) -> Report:
    """A plausible report with this number of findings."""
    while True:
        abnormal = set(rng.sample(list(METRICS), findings))
        report = {}
        for name, metric in METRICS.items():
            values = [one for one in metric.values() if (metric.status(one) != "fine") == (name in abnormal)]
            report[name] = rng.choice(values)
        if plausible(report):
            return report


def _metric(finding: str) -> str:
    return finding.split()[0]


def findings_of(report: Report) -> list[str]:
    """The findings of a report, such as "hrv low", in the order of the metrics."""
    statuses = {name: metric.status(report[name]) for name, metric in METRICS.items()}
    return [f"{name} {status}" for name, status in statuses.items() if status != "fine"]


def plan(findings: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(advice, the findings that it is for) by the rule base: pairs first, each finding once."""
    left, items = list(findings), []
    for needed, advice in ADVICE.items():
        if all(finding in left for finding in needed):
            items.append((advice, needed))
            left = [finding for finding in left if finding not in needed]
    return items


def report_text(report: Report) -> str:
    """A report as a prompt shows it."""
    return " ".join(cited(name, report[name]) for name in METRICS)


def recommendation(report: Report) -> tuple[str, str]:
    """(rationale, answer) of the teacher for a report: values and statuses, rules, advice."""
    items = plan(findings_of(report))
    statuses = " ".join(
        f"{cited(name, report[name])} {metric.status(report[name])}" for name, metric in METRICS.items()
    )
    rules = " ; ".join(f"{' and '.join(needed)} : {advice}" for advice, needed in items)
    reasons = [" ".join(cited(name, report[name]) for name in map(_metric, needed)) for _, needed in items]
    answer = " ; ".join(f"{advice} for {reason}" for (advice, _), reason in zip(items, reasons, strict=True))
    return f"{statuses} . so {rules or NOTHING}", answer or NOTHING


def follow_up(report: Report, name: str) -> tuple[str, str]:
    """(rationale, answer) of the teacher for a question about one metric of a report."""
    value, status = cited(name, report[name]), METRICS[name].status(report[name])
    answer = f"yes {value}" if status == "fine" else f"no {ADVICE[f'{name} {status}',]} for {value}"
    return f"{value} {status}", answer


def facts() -> list[tuple[tuple[str, ...], str, str]]:
    """(forms of the question, rationale, answer) of everything that the rule base says; common advice last."""
    ranges = [
        (
            tuple(form.format(name) for form in RANGES),
            f"range of {name}",
            f"{cited(name, metric.healthy[0])} to {cited(name, metric.healthy[1])}",
        )
        for name, metric in METRICS.items()
    ]
    ordered = sorted(ADVICE.items(), key=lambda item: len(item[0]))
    remedies = [
        (tuple(form.format(" and ".join(needed)) for form in REMEDIES), f"advice for {' and '.join(needed)}", advice)
        for needed, advice in ordered
    ]
    return ranges + remedies


def draw_rows(count: int, seed: int, held_out: bool = False, findings: tuple[int, ...] = (0, 1, 2, 3, 4)) -> list[Row]:
    """Rows of the three tasks in turn, with the teacher's `rationale` and `answer`.

    Held-out recommendations come in pairs of reports with different answers, each with the other's id in `pair`, for
    the swap test; `level` is the number of findings. Held-out questions of knowledge are asked in a form that is in no
    training row.

    Args:
        count: number of rows.
        seed: seed of the reports; training and held-out rows of a seed differ.
        findings: numbers of findings of the reports, drawn evenly.
    """
    rng, known = random.Random(derive_seed("sleep", seed, held_out)), facts()
    rows: list[Row] = []
    while len(rows) < count:
        reports = [draw_report(rng, rng.choice(findings)) for _ in range(2)]
        if recommendation(reports[0])[1] == recommendation(reports[1])[1]:
            continue
        first = len(rows)
        for place, report in enumerate(reports):
            rationale, answer = recommendation(report)
            row: Row = {"id": str(first + place), "prompt": f"{report_text(report)} . {QUESTION}", "report": report}
            row |= {"task": f"recommend-{len(findings_of(report))}", "level": len(findings_of(report))}
            rows.append(row | {"pair": str(first + 1 - place), "rationale": rationale, "answer": answer})
        name = rng.choice(list(METRICS))
        rationale, answer = follow_up(reports[0], name)
        prompt = f"{report_text(reports[0])} . {rng.choice(FOLLOW_UPS).format(name)}"
        row = {"id": str(first + 2), "prompt": prompt, "report": reports[0], "task": "follow_up"}
        rows.append(row | {"rationale": rationale, "answer": answer})
        forms, rationale, answer = rng.choice(known)
        row = {"id": str(first + 3), "prompt": forms[-1] if held_out else rng.choice(forms[:-1]), "task": "knowledge"}
        rows.append(row | {"rationale": rationale, "answer": answer})
    return rows[:count]


def taught(row: Row, rng: random.Random) -> str:
    """The rule-based teacher's text for a row: the rationale between tags, then the answer."""
    return f"<think>{row['rationale']}</think>{row['answer']}"


def instruction(prompt: str, examples: list[Row]) -> str:
    """The prompt of a teacher that is a model: the rule base, worked examples, the question."""
    ranges = ", ".join(
        f"{name} {shown(metric.healthy[0])} to {shown(metric.healthy[1])} {metric.unit}"
        for name, metric in METRICS.items()
    )
    advice = ", ".join(f"{' and '.join(needed)}: {text}" for needed, text in ADVICE.items())
    worked = "\n".join(f"Input: {row['prompt']}\nOutput: {taught(row, random.Random(0))}" for row in examples)
    return INSTRUCTION.format(ranges=ranges, advice=advice, nothing=NOTHING, examples=worked, prompt=prompt)


def vocabulary() -> list[str]:
    """Every word of reports, questions, rationales and answers, for a small tokenizer."""
    texts = [f"{name} {cited(name, value)}" for name, metric in METRICS.items() for value in metric.values()]
    texts += [*ADVICE.values(), NOTHING, QUESTION, *FOLLOW_UPS, *RANGES, *REMEDIES]
    texts += ["low fine high . ; : so and for yes no healthy to range of advice"]
    return list(dict.fromkeys(word for text in texts for word in text.replace("{}", "").split()))


PAPER = Paper(
    name="sleep_cot",
    title="SleepCoT",
    arxiv="2410.16924",
    idea="distillation of a teacher's rationales and answers on sleep reports, in three kinds of tasks",
    classes=("lightning_modules.ScoredSFT", "rewards.SleepRubric", "rewards.SwapSensitivity"),
    configs=("sleep_cot",),
    effect="",
    not_compared="it learns from given data, so a budget of generated tokens says nothing about it",
)
