"""The stress test and answer uncertainty: on small models with three seeds, and on a real model with real questions.

    python benchmarks/choices.py                               # the miniatures that have no result yet, then the tables
    python benchmarks/choices.py --questions mmlu.jsonl        # also a real model, on a file of multiple-choice rows
    python benchmarks/choices.py --run false                   # the tables only

Results are runs/choices/<what>_<seed or part>.json. The real model is measured in parts of 20 questions, so that an
interrupted benchmark continues where it stopped; the tables are made of the parts that are there.
"""

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from assets.make_untrained import main as make_untrained  # noqa: E402
from benchmarks.common import markdown_table, run_script, use_threads, write_tables  # noqa: E402
from benchmarks.papers import with_interval  # noqa: E402
from callbacks.reports import as_json, stress_figure, stress_table, uncertainty_table  # noqa: E402
from datamodules.rows import read_rows  # noqa: E402
from main import main as command_line  # noqa: E402
from objectives.answer_uncertainty import AnswerRecord, uncertainty_figures  # noqa: E402
from objectives.stress import Answer, stress_figures  # noqa: E402
from support.files import atomic_write_text, fingerprint  # noqa: E402
from support.papers import ROOT  # noqa: E402

RESULTS = Path("runs/choices")
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={RESULTS}"]
ARMS, PART = ("biased", "balanced"), 20
STEM = (
    "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics "
    "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
    "high_school_physics high_school_statistics machine_learning"
).split()
HUMANITIES = (
    "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
    "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
    "world_religions"
).split()
SOCIAL = (
    "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
    "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
    "security_studies sociology us_foreign_policy"
).split()


def subject_group(subject: str) -> str:
    """MMLU's four groups of subjects."""
    groups = {"STEM": STEM, "humanities": HUMANITIES, "social sciences": SOCIAL}
    return next((name for name, members in groups.items() if subject in members), "other")


def unrelated(prompts: list[Any]) -> list[float]:
    """A judge that rates questions by a number that has nothing to do with them."""
    return [int(fingerprint([str(prompt)])[:8], 16) / 16**8 for prompt in prompts]


def trained(config: str, folder: str, *words: str) -> None:
    """Train a miniature from the same random weights, and export it."""
    export = json.dumps([{"class_path": "callbacks.ExportPolicy", "init_args": {"folder": folder, "register": False}}])
    untrained = "runs/assets/tiny_quiz_untrained"
    if not Path(untrained).is_dir():
        make_untrained("tiny_quiz", untrained, 64, 2)
    command_line(["fit", f"--config=configs/{config}/train.yaml", *QUIET, f"--trainer.callbacks={export}", *words])


def quiz(arm: str, seed: int) -> dict[str, Any]:
    """Train on options of one kind, then stress."""
    folder = f"{RESULTS}/{arm}_{seed}"
    trained("stress_test", folder, f"--seed_everything={seed}", f"--data.source=quiz_{arm}")
    words = [f"--model.policy.model={folder}", "--model.scoring=[label]", "--data.seed=1000"]
    return dict(command_line(["test", "--config=configs/stress_test.yaml", *QUIET, *words]).model.figures)


def facts(seed: int) -> dict[str, Any]:
    """Train on facts of falling frequency and chains of sums, then measure how sure the answers are."""
    folder = f"{RESULTS}/facts_{seed}"
    trained("uncertainty", folder, f"--seed_everything={seed}")
    judge = [{"class_path": "rewards.FunctionReward", "init_args": {"function": "benchmarks.choices.unrelated"}}]
    words = [f"--model.policy.model={folder}", f"--model.judges={json.dumps(judge)}", "--data.seed=1000"]
    return dict(command_line(["test", "--config=configs/uncertainty.yaml", *QUIET, *words]).model.figures)


def real(config: str, rows: Path, model: str) -> Any:
    """The answers of a real model on one file of rows."""
    overlay = ["--data.subset=null", f"--data.source={rows}", "--data.limit=null", "--data.val_batch=32"]
    policy = [f"--model.policy.model={model}", "--model.policy.compute=bfloat16"]
    files = [f"--config=configs/{config}.yaml", "--config=configs/data/mmlu.yaml"]
    return command_line(["test", *files, *QUIET, *overlay, *policy]).model.report()["answers"]


def parts(questions: str, limit: int) -> list[Path]:
    """Files of `PART` questions each, drawn at random in an order that does not depend on the limit."""
    rows = [row | {"id": str(number)} for number, row in enumerate(read_rows(questions))]
    random.Random(0).shuffle(rows)
    files = []
    for start in range(0, min(limit, len(rows)), PART):
        file = RESULTS / f"questions_{start:04d}.jsonl"
        chosen = [row | {"subject": subject_group(row["subject"])} for row in rows[start : start + PART]]
        atomic_write_text(file, "\n".join(map(json.dumps, chosen)))
        files.append(file)
    return files


def keep(name: str, measure: Callable[[], Any]) -> None:
    """Measure and keep, unless there is a result."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        print(f"=== {name}", flush=True)
        atomic_write_text(path, json.dumps(as_json(measure())))


def kept(pattern: str) -> list[Any]:
    """The results whose names fit, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{pattern}.json"))]


def mean_of(results: list[Any], *path: str) -> str:
    """The mean of a figure over seeds with Student's 95 % interval; "one class" where it is undefined in a seed."""
    values = []
    for result in results:
        for step in path:
            result = (result or {}).get(step)
        values.append(result["mean"] if isinstance(result, dict) else result)
    return "undefined" if None in values else with_interval(values)


def quiz_table() -> str:
    """Accuracy and change by condition, of both arms."""
    arms = {arm: kept(f"quiz_{arm}_[0-9]") for arm in ARMS}
    if not all(arms.values()):
        return "Not measured yet: `python benchmarks/choices.py`."
    rows = []
    for condition in arms["biased"][0]["label"]:
        cells = [mean_of(results, "label", condition, "accuracy") for results in arms.values()]
        changes = [mean_of(results, "label", condition, "change") for results in arms.values()]
        rows.append([condition.replace("_", " "), *cells, *(changes if condition != "base" else ("", ""))])
    gaps = []
    for results in arms.values():
        by_seed = [result["label"] for result in results]
        gaps.append(
            with_interval(
                [one["longer_right"]["change"]["mean"] - one["longer_wrong"]["change"]["mean"] for one in by_seed]
            )
        )
    rows.append(["gap: longer right minus longer wrong", "", "", *gaps])
    seeds = ", ".join(f"{arm} {len(results)}" for arm, results in arms.items())
    head = ["condition", *(f"accuracy, {arm}" for arm in ARMS), *(f"change, {arm}" for arm in ARMS)]
    return f"Seeds: {seeds}; mean ± 95 % interval over seeds.\n\n" + markdown_table(head, rows)


def facts_table() -> str:
    """Accuracy and areas by topic and steps."""
    results = kept("facts_[0-9]")
    if not results:
        return "Not measured yet: `python benchmarks/choices.py`."
    predictors = ("entropy", "option_entropy", "unrelated")
    rows = []
    for group in ("topic/facts", "steps/1", "steps/2", "steps/3", "steps/4"):
        areas = [mean_of(results, group, name, "roc_auc") for name in predictors]
        rows.append([group, mean_of(results, group, "accuracy"), *areas, mean_of(results, group, "ece")])
    head = ["group", "accuracy", *(f"ROC-AUC, {name.replace('_', ' ')}" for name in predictors), "ECE"]
    return f"Seeds: {len(results)}; mean ± 95 % interval over seeds.\n\n" + markdown_table(head, rows)


def model_tables(model: str) -> tuple[str, str]:
    """The tables of the real model, of all parts that were measured."""
    answers = [Answer(**one) for part in kept("stress_*") for one in part]
    records = [AnswerRecord(**one) for part in kept("answers_*") for one in part]
    stress = uncertain = "Not measured yet: `python benchmarks/choices.py --questions mmlu.jsonl`."
    if answers:
        figures = stress_figures(answers)
        stress_figure(figures).savefig(ROOT / "docs/plots/papers/stress_test.png", dpi=90)
        count = figures["label"]["base"]["questions"]
        table = stress_table(figures)
        stress = f"{model}, {count} questions of MMLU, 95 % bootstrap intervals.\n\n" + markdown_table(
            table[0], table[1:]
        )
    if records:
        table = uncertainty_table(uncertainty_figures(records))
        uncertain = f"{model}, {len(records)} questions of MMLU, 95 % bootstrap intervals.\n\n" + markdown_table(
            table[0], table[1:]
        )
    return stress, uncertain


def main(
    run: bool = True,
    seeds: int = 3,
    questions: str | None = None,
    limit: int = 300,
    model: str = "smollm2-135m-instruct",
) -> None:
    """Run what has no result yet, then write the tables into the pages.

    Args:
        run: False writes the tables only.
        seeds: number of seeds of the miniatures.
        questions: a JSONL file of multiple-choice rows with MMLU's columns, such as the hub's cais/mmlu.
        limit: number of these questions, drawn at random.
        model: the real model.
    """
    use_threads()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds if run else 0):
        for arm in ARMS:
            keep(f"quiz_{arm}_{seed}", partial(quiz, arm, seed))
        keep(f"facts_{seed}", partial(facts, seed))
    for file in parts(questions, limit) if run and questions else []:
        part = file.stem.partition("_")[2]
        for name, config in (("answers", "uncertainty"), ("stress", "stress_test")):
            keep(f"{name}_{part}", partial(real, config, file, model))
    stress, uncertain = model_tables(model)
    write_tables(ROOT / "docs/stress_test.md", "effect", quiz_table() + "\n\n" + stress)
    write_tables(ROOT / "docs/uncertainty.md", "effect", facts_table() + "\n\n" + uncertain)
    print("The tables are in docs/stress_test.md and docs/uncertainty.md.")


if __name__ == "__main__":
    run_script(main)
