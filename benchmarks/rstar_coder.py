"""Measure rStar-Coder's miniature with three seeds: right labels by the number of candidates and by the way of voting,
and SFT on verified solutions beside SFT on all of them.

    python benchmarks/rstar_coder.py                        # everything, about six CPU minutes per seed
    python benchmarks/rstar_coder.py --what labels
    python benchmarks/rstar_coder.py --run false            # the tables only

Results are runs/rstar_coder/benchmark/*.json, so that an interrupted benchmark continues where it stopped. The tables
are written into docs/rstar_coder.md.
"""

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from assets.kept_texts import KeptTexts  # noqa: E402
from assets.many_inputs import RunLimits, literal  # noqa: E402
from assets.mutual_verification import Agreement, Vector, vote  # noqa: E402
from assets.problem_inputs import InputPlan, make_inputs  # noqa: E402
from assets.rstar_coder import main as data_step  # noqa: E402
from assets.writers import RuleWriter  # noqa: E402
from benchmarks.common import markdown_table, run_script, use_threads, write_tables  # noqa: E402
from benchmarks.compare.intervals import interval  # noqa: E402
from datamodules import WordPrograms  # noqa: E402
from datamodules.word_programs import ENTRY, oracle, solution  # noqa: E402
from main import main as command_line  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.seeding import derive_seed  # noqa: E402

FOLDER, PAGE = Path("runs/rstar_coder/benchmark"), "docs/rstar_coder.md"
INPUTS, AGREEMENT = InputPlan(per_scale=8), Agreement()
Metrics = dict[str, float]
#: labels of one problem: an output per input, None where there is no label; None if the problem is dropped
Labels = Sequence[str | None] | None


def whole_vector(vectors: list[Vector], programs: list[str]) -> Labels:
    """The pipeline's vote."""
    result = vote(vectors, programs, len(vectors), AGREEMENT.at_least, AGREEMENT.programs)
    return None if result.refusal else result.vector


def per_input(vectors: list[Vector], programs: list[str], at_least: float = AGREEMENT.at_least) -> Labels:
    """A vote on each input alone, by the same threshold."""
    labels: list[str | None] = []
    for outputs in zip(*vectors, strict=True):
        (output, count), *_ = Counter(each for each in outputs if each is not None).most_common(1) or [("", 0)]
        labels.append(output if count / len(vectors) >= at_least - 1e-9 else None)
    return labels if any(label is not None for label in labels) else None


def plurality(vectors: list[Vector], programs: list[str]) -> Labels:
    """A vote on each input alone, without a threshold."""
    return per_input(vectors, programs, 0.0)


VOTES: dict[str, Callable[[list[Vector], list[str]], Labels]] = {
    "whole vectors": whole_vector,
    "each input": per_input,
    "each input, no threshold": plurality,
}
#: rows of the table: (mistakes of the solvers, number of candidates, vote)
ROWS = [
    (mistakes, count, name)
    for mistakes in (0.3, 0.6)
    for count in (16, 3)
    for name in (VOTES if count == 16 else ("whole vectors",))
]


def outputs(source: str, inputs: list[Any]) -> Vector:
    """The outputs of a program of a solver. All are made of the parts in this project, so that they run right here."""
    names: dict[str, Any] = {}
    exec(source, names)
    values: list[str | None] = []
    for arguments in inputs:
        try:
            values.append(literal(names[ENTRY](*arguments)))
        except (ZeroDivisionError, RecursionError):
            values.append(None)
    return tuple(values)


def labels(seed: int, problems: int = 400) -> dict[str, Metrics]:
    """Right labels per row of the table, by the oracle."""
    counts: dict[str, Counter[str]] = {}
    rows = WordPrograms(train_size=problems, seeds=0.0, seed=1000 + seed).rows("train")
    inputs = make_inputs(rows[0], rows[0]["generator"], INPUTS, RunLimits()).values
    for row in rows:
        right = outputs(oracle(row["prompt"]), inputs)
        for mistakes in (0.3, 0.6):
            rng = random.Random(derive_seed("labels", seed, row["prompt"], mistakes))
            texts = [solution(row, rng, mistakes).removeprefix("</think>") for _ in range(16)]
            ran = {text: outputs(text, inputs) for text in set(texts)}
            for _, count, name in [one for one in ROWS if one[0] == mistakes]:
                voted = VOTES[name]([ran[text] for text in texts[:count]], texts[:count])
                counts.setdefault(f"{mistakes} {count} {name}", Counter()).update(_judged(voted, right))
    return {name: _fractions(count) for name, count in counts.items()}


def _judged(voted: Labels, right: Vector) -> Counter[str]:
    if voted is None:
        return Counter(problems=1)
    made = [(label, wanted) for label, wanted in zip(voted, right, strict=True) if label is not None]
    good = sum(label == wanted for label, wanted in made)
    return Counter(problems=1, labelled=1, labels=len(made), right=good, whole=int(good == len(made)))


def _fractions(count: Counter[str]) -> Metrics:
    """Fractions of right labels, of labelled problems without a wrong one, and of problems that were labelled."""
    return {
        "labels": count["right"] / max(1, count["labels"]),
        "problems": count["whole"] / max(1, count["labelled"]),
        "labelled": count["labelled"] / count["problems"],
    }


def sft_data(seed: int, folder: Path) -> None:
    """The data step with another seed, and the first candidate of every problem without a check."""
    data = WordPrograms(train_size=400, seeds=0.1, seed=1)
    writer, out = RuleWriter(solution), folder / "kept.parquet"
    if not out.is_file():
        held_out = WordPrograms(val_size=200, seed=1)
        data_step(data, str(out), [writer], benchmarks=[held_out], inputs=INPUTS, keep_seed=1, seed=seed)
    rows = data.rows("train")
    written = KeptTexts(folder / "kept.parts/texts", 64, seed).of(writer, rows, 16)
    firsts = [{"prompt": row["prompt"], "response": texts[0]} for row, texts in zip(rows, written, strict=True)]
    atomic_write_text(folder / "unfiltered.jsonl", "".join(json.dumps(row) + "\n" for row in firsts))


PASS = {"sampled": 1.0, "greedy": 0.0}
ARMS = {"all solutions": "unfiltered.jsonl", "verified solutions": "kept.parquet"}


def sft(seed: int, arm: str) -> Metrics:
    """pass@1 on held-out problems after SFT, of samples at temperature 1 and of greedy completions."""
    folder = FOLDER / f"data_{seed}"
    sft_data(seed, folder)
    model = str(folder / arm.replace(" ", "_"))
    export = [{"class_path": "callbacks.ExportPolicy", "init_args": {"folder": model}}]
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", f"--seed_everything={seed}"]
    config = "--config=configs/rstar_coder.yaml"
    source = f"--data.source={folder / ARMS[arm]}"
    training = ["--trainer.limit_val_batches=0", f"--trainer.callbacks={json.dumps(export)}"]
    command_line(["fit", config, source, *training, *quiet])
    prompts = [{"class_path": "datamodules.WordPrograms", "init_args": {"val_size": 200, "seed": 1}}]
    asked = [f"--model.policy.model={model}", f"--data.prompts={json.dumps(prompts)}"]
    measured = {}
    for name, temperature in PASS.items():
        changed = f"--model.sampling.temperature={temperature}"
        cli = command_line(["validate", config, source, *asked, changed, *quiet])
        measured[name] = float(cli.trainer.callback_metrics["val/pass@1"])
    return measured


def _path(name: str, seed: int) -> Path:
    return FOLDER / f"{name.replace(' ', '_')}_{seed}.json"


def main(what: Literal["all", "labels", "sft"] = "all", seeds: int = 3, run: bool = True) -> None:
    """Run what has no result yet and write the tables into the page.

    Args:
        what: which part. seeds: number of seeds. run: whether to run, or only to write the tables.
    """
    use_threads()
    work: dict[str, Callable[[int], Any]] = {} if what == "sft" else {"labels": labels}
    if what != "labels":
        work |= {arm: lambda seed, arm=arm: sft(seed, arm) for arm in ARMS}
    for seed in range(seeds):
        for name, measure in work.items():
            path = _path(name, seed)
            if run and not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_text(path, json.dumps(measure(seed), indent=1))
    print(text := tables(seeds))
    write_tables(PAGE, "effect of rstar_coder", text)


def tables(seeds: int) -> str:
    """Both tables, with the means over the seeds and Student's 95 % intervals."""
    results = {
        name: [json.loads(path.read_text()) for seed in range(seeds) if (path := _path(name, seed)).is_file()]
        for name in ("labels", *ARMS)
    }
    head = ["solvers' mistakes", "candidates", "vote on", "seeds", "right labels", "problems without a wrong label"]
    rows = []
    for mistakes, count, name in ROWS if results["labels"] else []:
        values = [one[f"{mistakes} {count} {name}"] for one in results["labels"]]
        columns = [_shown([one[key] for one in values]) for key in ("labels", "problems", "labelled")]
        rows.append([f"{mistakes:.0%}", str(count), name, str(len(values)), *columns])
    trained = [
        [f"SFT on {arm}", str(len(results[arm])), *(_shown([one[key] for one in results[arm]]) for key in PASS)]
        for arm in ARMS
        if results[arm]
    ]
    return "\n\n".join(
        markdown_table(names, cells) if cells else f"{title}: not measured yet."
        for title, names, cells in (
            ("Labels", [*head, "labelled problems"], rows),
            ("SFT", ["arm", "seeds", *(f"pass@1, {key}" for key in PASS)], trained),
        )
    )


def _shown(values: list[float]) -> str:
    seen = interval(values)
    assert seen is not None
    return f"{seen.mean:.1%}" + ("" if math.isnan(seen.half) else f" ± {seen.half * 100:.1f}")


if __name__ == "__main__":
    run_script(main)
