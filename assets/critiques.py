"""Critiques of many solutions of one problem, for critique fine-tuning (arXiv 2506.03295).

    python assets/critiques.py --config configs/critique/2_critiques.yaml

Solvers write solutions, verifiers say which are right, teachers critique them. A critique is kept if its verdict agrees
with the verifiers.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from assets.trace_pairs import expanded, recorded_traces, verified  # noqa: E402
from assets.writers import Writer  # noqa: E402
from datamodules.critiques import INSTRUCTION, QUESTION, WORDS, shown  # noqa: E402
from datamodules.rows import check_rows  # noqa: E402
from datamodules.self_verify import check_prompt, verify_row  # noqa: E402
from rewards import Reward  # noqa: E402
from rewards.self_verify import check_words, verdict_of  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.prompt_identity import normalised  # noqa: E402
from support.seeding import derive_seed  # noqa: E402

Row = dict[str, Any]


def main(
    problem: Row,
    teachers: list[Writer],
    verifiers: list[Reward],
    out: str,
    solvers: list[Writer] | None = None,
    sources: list[str] | None = None,
    samples: int = 100,
    critiques: int = 1,
    per_kind: int | None = None,
    held_out: int = 32,
    question: str = QUESTION,
    instruction: str = INSTRUCTION,
    words: tuple[str, str] = WORDS,
    at_least: float = 1.0,
    seed: int = 0,
) -> None:
    """Write critiques.jsonl, unseen.jsonl and solution.jsonl into a folder.

    critiques.jsonl has `prompt` (question and solution), `response` (the critique), `solution_correct` and `writer`.
    unseen.jsonl has the same prompts for solutions that no critique is about. solution.jsonl has the problem with one
    right solution, for the comparison with fine-tuning on it.

    Args:
        problem: a data row with `prompt` and the columns that the verifiers read, such as `answer`.
        teachers: what writes critiques. A rule finds the problem's prompt and the solution in `problem` and `solution`.
        verifiers: rewards that judge correctness; a solution is right if all say so.
        out: folder to write to.
        solvers: what writes solutions.
        sources: files with solutions, as those of assets/trace_pairs.py; those of other problems are left out.
        samples: solutions per solver. critiques: critiques per solution and teacher.
        per_kind: maximum number of right and of wrong solutions; all if None.
        held_out: number of solutions for unseen.jsonl, half of them right.
        question: template of the student's prompt. instruction: template of the teachers' prompt.
        words: the words for right and wrong; the last of them in a critique is its verdict.
        at_least: smallest score of every verifier for a right solution.
        seed: seed of the draws.

    Raises:
        ConfigError: if the solutions are all right or all wrong, a teacher writes nothing, or no critique of a kind is
            kept.
    """
    check_rows([problem], "--problem")
    for name, listed in (
        ("teachers", teachers),
        ("verifiers", verifiers),
        ("solvers and --sources", solvers or sources),
    ):
        if not listed:
            raise ConfigError(f"--{name} is empty; give at least one, see configs/critique/2_critiques.yaml.")
    for name, number in {"samples": samples, "critiques": critiques, "held_out": held_out}.items():
        if number < 1:
            raise ConfigError(f"--{name} is {number}; it must be at least 1.")
    check_prompt(question, "--question")
    check_prompt(instruction, "--instruction")
    check_words(words)
    for verifier in verifiers:
        verifier.check_columns({"id": "problem"} | problem)
    rng = random.Random(derive_seed("critiques", seed))
    solutions = _solutions(problem, solvers or [], sources or [], samples, seed)
    kinds = _kinds(problem, solutions, verifiers, at_least, per_kind)
    unseen: list[tuple[str, bool]] = []
    seen: list[tuple[str, bool]] = []
    for right, texts in kinds.items():
        rng.shuffle(texts)
        count = min((held_out + 1) // 2 if right else held_out // 2, len(texts) // 2)
        unseen += [(text, right) for text in texts[:count]]
        seen += [(text, right) for text in texts[count:]]
    kept, counts = _critiques(problem, seen, teachers, critiques, question, instruction, words, seed)
    questions = [_question(problem, text, right, question) for text, right in unseen]
    example = next(completion for completion in solutions if shown(completion) in kinds[True])
    files = {
        "critiques": kept,
        "unseen": questions,
        "solution": [{"prompt": problem["prompt"], "response": example}],
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        atomic_write_text(Path(out) / f"{name}.jsonl", text)
    print(
        f"{len(kinds[True])} right and {len(kinds[False])} wrong solutions; {len(kept)} critiques kept ({counts}), "
        f"{len(questions)} solutions held out. Written to {out}."
    )


def _solutions(problem: Row, solvers: list[Writer], sources: list[str], samples: int, seed: int) -> list[str]:
    """The completions of solvers and files for the problem, each once."""
    completions = [text for solver in solvers for text in solver.texts([problem], samples, seed)[0]]
    recorded = [one for pattern in sources for path in expanded(pattern) for one in recorded_traces(path, {})]
    key = normalised(problem["prompt"])
    of_problem = [
        one["completion"] for one in recorded if normalised(one["prompt"]) == key and one["finish"] != "length"
    ]
    if sources and not of_problem:
        raise ConfigError(
            f"none of {len(recorded)} completions in {', '.join(sources)} is a whole one of the prompt "
            f"{problem['prompt']!r}; correct --problem, or name files with its solutions."
        )
    return list(dict.fromkeys([*completions, *of_problem]))


def _kinds(
    problem: Row, solutions: list[str], verifiers: list[Reward], at_least: float, per_kind: int | None
) -> dict[bool, list[str]]:
    """The different solutions as they are shown, by whether they are right."""
    traces = [problem | {"completion": text, "finish": "eos"} for text in solutions]
    agreed, _ = verified(traces, verifiers, at_least)
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for text, right in zip(map(shown, solutions), agreed, strict=True):
        if text not in kinds[right]:
            kinds[right].append(text)
    if both := set(kinds[True]) & set(kinds[False]):
        # Two completions that look alike without the tags of their reasoning: neither is a clear example.
        kinds = {right: [text for text in texts if text not in both] for right, texts in kinds.items()}
    for right, name, remedy in ((True, "right", "a stronger solver, an easier problem"), (False, "wrong", "a weaker")):
        if len(kinds[right]) < 2:
            remedy += "" if right else " solver, a higher temperature, a harder problem"
            raise ConfigError(
                f"{len(kinds[right])} of {len(solutions)} different solutions of {str(problem['prompt'])[:60]!r} are "
                f"{name}, and critiques need at least two of each kind. Use {remedy}, more --samples, or other "
                "--verifiers."
            )
    return {right: texts[:per_kind] for right, texts in kinds.items()}


def _question(problem: Row, text: str, right: bool, question: str) -> Row:
    row = verify_row({"id": "problem"} | problem, text, question)
    return row | {"task": "critique", "solution_correct": right}


def _critiques(
    problem: Row,
    seen: list[tuple[str, bool]],
    teachers: list[Writer],
    critiques: int,
    question: str,
    instruction: str,
    words: tuple[str, str],
    seed: int,
) -> tuple[list[Row], str]:
    """(the kept critiques with their prompts, a text with the numbers of all)."""
    asked = [
        _question(problem, text, right, instruction) | {"problem": problem["prompt"], "solution": text}
        for text, right in seen
    ]
    kept: dict[tuple[str, str], Row] = {}
    written = without = 0
    for teacher in teachers:
        for (text, right), texts in zip(seen, teacher.texts(asked, critiques, seed), strict=True):
            verdicts = [verdict_of(critique, words) for critique in texts]
            written, without = written + len(texts), without + verdicts.count(None)
            prompt = _question(problem, text, right, question)["prompt"]
            for critique, verdict in zip(texts, verdicts, strict=True):
                if verdict is right:
                    row = {"prompt": prompt, "response": critique, "solution_correct": right, "writer": teacher.name}
                    kept.setdefault((text, critique), row)
    counts = f"of {written}; {without} without a verdict"
    for right, name in ((True, "right"), (False, "wrong")):
        if not any(row["solution_correct"] is right for row in kept.values()):
            raise ConfigError(
                f"no critique of a {name} solution is kept ({len(kept)} {counts}): the verdicts of "
                f"{', '.join(teacher.name for teacher in teachers)} never agree with the verifiers there. Check that "
                f"--instruction asks for a last line with {words[0]!r} or {words[1]!r}, or use another teacher."
            )
    return list(kept.values()), counts


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
