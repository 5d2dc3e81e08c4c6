"""Sleep reports with a teacher's rationales and answers, for distillation (SleepCoT, arXiv 2410.16924).

    python assets/sleep_data.py --config configs/sleep_cot/1_data.yaml

A toy: the rule base is invented, and nothing of it is medical advice.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from assets.writers import Writer  # noqa: E402
from datamodules.sleep import draw_rows, instruction  # noqa: E402
from rewards import SleepRubric  # noqa: E402
from rewards.self_check import answer_text  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.prompt_identity import normalised  # noqa: E402

Row = dict[str, Any]


def main(
    teachers: list[Writer],
    out: str,
    train_size: int = 400,
    val_size: int = 96,
    samples: int = 1,
    examples: int = 3,
    only_correct: bool = True,
    seed: int = 0,
) -> None:
    """Write train.jsonl and val.jsonl into a folder.

    Both have `prompt`, `task`, `answer` and, with reports, `report`; train.jsonl has the teacher's `rationale` and
    `answer`, val.jsonl those of the rule base. No prompt is in both.

    Args:
        teachers: what writes "<think>rationale</think>answer". A model or an endpoint is shown the rule base and worked
            examples.
        out: folder to write to.
        train_size: number of training rows, before the teachers' texts are filtered. val_size: of held-out rows.
        samples: texts per row and teacher, of which the first good one is kept.
        examples: number of worked examples in a teacher's prompt.
        only_correct: keep a text only if its answer is that of the rule base, see rewards.SleepRubric.
        seed: seed of the reports and of the teachers' draws.

    Raises:
        ConfigError: if a teacher writes nothing, or no text of a task is kept.
    """
    sizes = {"train_size": train_size, "val_size": val_size, "samples": samples}
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"--{name} is {size}; it must be at least 1.")
    if not teachers:
        raise ConfigError("--teachers is empty; give at least one, see configs/sleep_cot/1_data.yaml.")
    held_out = draw_rows(val_size, seed, held_out=True)
    known = {normalised(row["prompt"]) for row in held_out}
    drawn = draw_rows(train_size + max(0, examples), seed)
    shots = drawn[: max(0, examples)]
    rows = [row for row in drawn[len(shots) :] if normalised(row["prompt"]) not in known]
    asked = [row | {"question": row["prompt"], "prompt": instruction(row["prompt"], shots)} for row in rows]
    written: list[list[str]] = [[] for _ in rows]
    for teacher in teachers:
        for texts, more in zip(written, teacher.texts(asked, samples, seed), strict=True):
            texts.extend(more)
    kept = [
        learned for row, texts in zip(rows, written, strict=True) if (learned := _learned(row, texts, only_correct))
    ]
    for task in {row["task"].partition("-")[0] for row in rows}:
        if not any(row["task"].startswith(task) for row in kept):
            raise ConfigError(
                f"no text of {', '.join(teacher.name for teacher in teachers)} is kept for the task {task!r} "
                f"({sum(map(len, written))} texts for {len(rows)} rows): a text must be <think>rationale</think>answer"
                f"{' with the answer of the rule base' if only_correct else ''}. Use another teacher, more --samples "
                "or more --examples."
            )
    for name, part in (("train", kept), ("val", held_out)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        atomic_write_text(Path(out) / f"{name}.jsonl", text)
    print(f"{len(kept)} of {len(rows)} rows have a text that is kept, {len(held_out)} are held out. Written to {out}.")


def _learned(row: Row, texts: list[str], only_correct: bool) -> Row | None:
    """The row with the rationale and answer of the first good text; None without one."""
    for text in texts:
        rationale, closed, _ = text.rpartition("</think>")
        answer = answer_text(text, opened=False)
        if not closed or not answer:
            continue
        columns: dict[str, Any] = {name: [row[name]] for name in ("task", "answer", "report") if name in row}
        if only_correct and SleepRubric().evaluate([answer], [row["prompt"]], **columns) != [1.0]:
            continue
        return row | {"rationale": rationale.replace("<think>", "").strip(), "answer": answer}
    return None


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
