"""Verified training data for code from problems alone: inputs, outputs, tests and solutions (rStar-Coder, Microsoft).

    python assets/rstar_coder.py --config configs/rstar_coder/1_data.yaml

A problem is a data row with `prompt` and `id`. It is a function if it has `entry_point`, else a program that reads and
prints. Further columns: `generator`, a program with `generate(scale, seed)` and perhaps `valid(...)`; `validator`, a
program with `valid(...)`; `inputs`, a list of inputs; `oracle`, a right program, which makes it a seed problem;
`rating`, its difficulty. docs/rstar_coder.md describes the stages.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from assets.decontamination import WORDS, Decontamination  # noqa: E402
from assets.kept_texts import KeptTexts  # noqa: E402
from assets.many_inputs import RunLimits  # noqa: E402
from assets.mutual_verification import Agreement  # noqa: E402
from assets.problem_inputs import InputPlan  # noqa: E402
from assets.trace_pairs import expanded, recorded_traces  # noqa: E402
from assets.verified_problem import Checked, Verification, check_problem  # noqa: E402
from assets.verified_report import write_results  # noqa: E402
from assets.writers import Writer  # noqa: E402
from datamodules.prompts import PromptData  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text, file_hash, fingerprint  # noqa: E402
from support.prompt_identity import normalised  # noqa: E402

Row = dict[str, Any]
PROBLEM = "<problem>"
#: the prompt of a writer of generators
GENERATOR_QUESTION = """Write test inputs for the programming problem below, as two Python functions in one ```python \
block. `generate(scale, seed)` returns <input>, random by `seed`, whose size is about `scale` (1 to 100,000). \
`valid(<arguments>)` returns True if an input satisfies all constraints of the problem, else False. Use the standard \
library only.

<problem>"""
#: column of a problem -> what it must be, if not a text
KINDS = {"inputs": "a list", "rating": "a number", "entry_point": "the name of a function"}
#: the modules whose change makes earlier results invalid
CODE = ("inside_sandbox", "many_inputs", "mutual_verification", "problem_inputs", "verified_problem")


def main(
    data: PromptData,
    out: str,
    writers: list[Writer] | None = None,
    sources: list[str] | None = None,
    generators: list[Writer] | None = None,
    benchmarks: list[PromptData] | None = None,
    samples: int = 16,
    inputs: InputPlan | None = None,
    agreement: Agreement | None = None,
    limits: RunLimits | None = None,
    keep: int = 1,
    keep_seed: int | None = None,
    unsolved_seeds: bool = True,
    words: int = WORDS,
    question: str = PROBLEM,
    generator_question: str = GENERATOR_QUESTION,
    workers: int = 2,
    batch: int = 64,
    seed: int = 0,
) -> None:
    """Write a parquet file with a row per kept solution, a report, and the dropped problems with their reasons.

    A row has `prompt`, `response`, and `tests` with `entry_point`, or `cases`, as rewards.CodeTests reads them.
    Finished problems are kept in a folder beside the file, so that an interrupted run continues where it stopped.

    Args:
        data: data module whose training rows are the problems.
        out: a .parquet file; report, dropped problems and finished parts have its name with other endings.
        writers: what writes candidate solutions, `samples` each.
        sources: files with candidates, as those of assets/trace_pairs.py, matched to problems by the prompt.
        generators: what writes generators for problems that have neither `generator` nor `inputs`.
        benchmarks: data modules whose held-out prompts must not be in the training data.
        samples: candidates per problem and writer.
        inputs: how many inputs are made. agreement: when candidates label outputs. limits: of every program.
        keep: solutions per synthetic problem, the fastest first. keep_seed: per seed problem; all if None.
        unsolved_seeds: keep all solutions of a seed problem if none passes all tests.
        words: number of words in a row that no problem may share with a benchmark.
        question: template of the writers' prompt; it contains <problem>.
        generator_question: template of the generators' prompt; <input> and <arguments> are filled in.
        workers: number of problems that are verified at the same time.
        batch: number of problems that writers are asked about at once.
        seed: seed of the writers' draws.

    Raises:
        ConfigError: for two problems of one id, a problem without inputs, a writer that writes nothing, or if no
            solution is kept.
    """
    _check(
        out, writers, sources, question, generator_question, samples=samples, keep=keep, workers=workers, batch=batch
    )
    folder = Path(out).with_suffix(".parts")
    problems = data.rows("train")
    check_problems(problems, bool(generators))
    dropped: dict[str, Checked] = {}
    kept = _first_of_each_prompt(problems, dropped)
    kept = _decontaminated(kept, benchmarks or [], words, dropped)
    texts = KeptTexts(folder / "texts", batch, seed)
    candidates, missing = _candidates(kept, writers or [], sources or [], samples, question, texts)
    asked = [row for row in kept if not row.get("generator") and not row.get("inputs")]
    prompts = [_asked(row, _generator_question(row, generator_question)) for row in asked]
    made: dict[str, list[str]] = {str(row["id"]): [] for row in kept}
    for writer in generators or []:
        for row, written in zip(asked, texts.of(writer, prompts, 1) if asked else [], strict=True):
            made[str(row["id"])] += written
    parts = (inputs or InputPlan(), agreement or Agreement(), limits or RunLimits())
    plan = Verification(*parts, keep, keep_seed, unsolved_seeds)

    def finished(row: Row) -> Checked:
        name = str(row["id"])
        return _finished(row, candidates[name], missing[name], made[name], plan, folder / "problems")

    checked = _in_parallel(finished, kept, workers)
    results = dropped | {str(row["id"]): one for row, one in zip(kept, checked, strict=True)}
    write_results(Path(out), problems, results)


def _check(out: str, writers: Any, sources: Any, question: str, generator_question: str, **numbers: int) -> None:
    if not out.endswith(".parquet"):
        raise ConfigError(f"--out is {out!r}; it must end in .parquet, the format that SFT and CodeTests read.")
    if not writers and not sources:
        raise ConfigError(
            "--writers and --sources are empty, so there are no candidate solutions; give at least one, see "
            "configs/rstar_coder/1_data.yaml."
        )
    for name, text in (("question", question), ("generator_question", generator_question)):
        if PROBLEM not in text:
            raise ConfigError(f"--{name} is {text[:60]!r}; it must contain {PROBLEM}.")
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"--{name} is {number}; it must be at least 1.")


def check_problems(problems: list[Row], written: bool) -> None:
    """Check ids and columns.

    Args:
        written: whether generators are written for problems without inputs.

    Raises:
        ConfigError: naming the problem and the column.
    """
    places: dict[str, int] = {}
    texts = ("generator", "validator", "oracle", "entry_point", "code_prompt")
    for number, row in enumerate(problems):
        name = str(row["id"])
        if name in places:
            raise ConfigError(
                f"problems {places[name]} and {number} both have the id {name!r}; ids name problems in files and "
                "reports, so make them different or drop one."
            )
        places[name] = number
        wrong = next((column for column in texts if not isinstance(row.get(column) or "", str)), None)
        if wrong is None and not isinstance(row.get("inputs") or [], list):
            wrong = "inputs"
        if wrong is None and row.get("rating") is not None and not _is_number(row["rating"]):
            wrong = "rating"
        if wrong is None and row.get("entry_point") and not row["entry_point"].isidentifier():
            wrong = "entry_point"
        if wrong:
            raise ConfigError(
                f"problem {name!r} has {str(row[wrong])[:60]!r} as its {wrong!r}; it must be "
                f"{KINDS.get(wrong, 'a text')}. Correct or drop the row."
            )
        if not written and not row.get("generator") and not row.get("inputs"):
            raise ConfigError(
                f"problem {name!r} has neither `generator` nor `inputs`, only {sorted(row)}; add a column, or let "
                "--generators write generators."
            )


def _is_number(value: Any) -> bool:
    try:
        return float(value) == float(value)
    except (TypeError, ValueError):
        return False


def _first_of_each_prompt(problems: list[Row], dropped: dict[str, Checked]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in problems:
        other = first.setdefault(normalised(row["prompt"]), row)
        if other is not row:
            dropped[str(row["id"])] = Checked(stage="problems", reason="the prompt of another problem")
    return list(first.values())


def _decontaminated(
    problems: list[Row], benchmarks: list[PromptData], words: int, dropped: dict[str, Checked]
) -> list[Row]:
    prompts = [row["prompt"] for benchmark in benchmarks for row in benchmark.rows("val")]
    known, kept = Decontamination(prompts, words), []
    for row in problems:
        if known.shared(row["prompt"]):
            dropped[str(row["id"])] = Checked(stage="decontamination", reason="in a benchmark")
        else:
            kept.append(row)
    return kept


def _asked(row: Row, template: str) -> Row:
    """The row with the prompt that a writer gets."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return row | {"prompt": template.replace(PROBLEM, prompt)}
    *before, last = prompt
    return row | {"prompt": [*before, last | {"content": template.replace(PROBLEM, last["content"])}]}


def _generator_question(row: Row, template: str) -> str:
    entry = row.get("entry_point")
    kind = f"a list of arguments of `{entry}`" if entry else "a text of standard input"
    return template.replace("<input>", kind).replace("<arguments>", "*arguments" if entry else "text")


def _candidates(
    problems: list[Row], writers: list[Writer], sources: list[str], samples: int, question: str, texts: KeptTexts
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """(texts of candidates by problem, number of those that were cut off or not written)."""
    written: dict[str, list[str]] = {str(row["id"]): [] for row in problems}
    missing = dict.fromkeys(written, 0)
    asked = [_asked(row, question) for row in problems]
    for writer in writers:
        for row, of_row in zip(problems, texts.of(writer, asked, samples) if asked else [], strict=True):
            written[str(row["id"])] += of_row
            missing[str(row["id"])] += samples - len(of_row)
    names = {normalised(row["prompt"]): str(row["id"]) for row in problems}
    traces = [one for pattern in sources for path in expanded(pattern) for one in recorded_traces(path, {})]
    matched = [(names[key], one) for one in traces if (key := normalised(one["prompt"])) in names]
    if sources and not matched:
        raise ConfigError(
            f"none of {len(traces)} completions in {', '.join(sources)} has the prompt of a problem; name files with "
            "solutions of these problems."
        )
    for name, one in matched:
        whole = one["finish"] != "length" and one["completion"].strip()
        written[name] += [one["completion"]] if whole else []
        missing[name] += not whole
    return written, missing


def _finished(
    row: Row, texts: list[str], missing: int, generators: list[str], plan: Verification, folder: Path
) -> Checked:
    """The result of a problem, from an earlier run if it had the same problem, candidates, settings and code."""
    code = [file_hash(Path(__file__).with_name(f"{name}.py")) for name in CODE]
    path = folder / f"{fingerprint([row, texts, missing, generators, asdict(plan), code])[:32]}.json"
    try:
        return Checked(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        checked = check_problem(row, texts, missing, generators, plan)
    if checked.stage not in ("sandbox", "candidates"):  # the next run may do better
        atomic_write_text(path, json.dumps({each.name: getattr(checked, each.name) for each in fields(checked)}))
    return checked


def _in_parallel(work: Any, items: list[Any], workers: int) -> list[Any]:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
