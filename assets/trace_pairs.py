"""Pairs of a right and a wrong trace, and the right traces alone, from recorded completions (REDI, arXiv 2505.24850).

    python assets/trace_pairs.py --config configs/redi/2_pairs.yaml

A trace is right if all verifiers say so and it ended by itself; every other one is wrong. Each problem gives one pair,
of the first right and the first wrong trace.
"""

import glob
import json
import sys
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from datamodules.prompts import PromptData  # noqa: E402
from datamodules.rows import read_rows  # noqa: E402
from policies import encode_prompt, load_tokenizer  # noqa: E402
from policies.prompt_encoding import encode_content  # noqa: E402
from rewards import Reward  # noqa: E402
from support.errors import ConfigError  # noqa: E402
from support.files import atomic_write_text  # noqa: E402
from support.prompt_identity import normalised  # noqa: E402

Row = dict[str, Any]
#: completions that are verified at once
AT_ONCE = 256


def main(
    sources: list[str],
    verifiers: list[Reward],
    model: str,
    out: str,
    data: PromptData | None = None,
    at_least: float = 1.0,
    max_prompt: int = 800,
    max_trace: int = 19_000,
) -> None:
    """Write positives.jsonl (`prompt`, `response`) and pairs.jsonl (PKU-SafeRLHF's columns) into a folder.

    Args:
        sources: recorded rollouts (callbacks.RolloutRecorder), predictions.jsonl, or files with `prompt`, `completion`
            and the columns that the verifiers read; patterns such as runs/x/rollouts/*.parquet are expanded.
        verifiers: rewards that judge correctness; two that extract answers differently catch each other's mistakes.
        model: whose tokenizer counts the tokens.
        out: folder to write to.
        data: data module whose training and held-out rows give the columns of predictions, by their id.
        at_least: smallest score of every verifier for a right trace.
        max_prompt: prompts with more tokens are left out. max_trace: traces with more tokens are left out.

    Raises:
        ConfigError: for a source without completions, or if there is no pair.
    """
    if not verifiers:
        raise ConfigError("--verifiers is empty; give at least one reward, such as rewards.ExactAnswer.")
    known = {} if data is None else {row["id"]: row for split in ("train", "val") for row in data.rows(split)}
    traces = [one for pattern in sources for path in expanded(pattern) for one in recorded_traces(path, known)]
    tokenizer = load_tokenizer(model)
    short = [
        one
        for one in traces
        if len(encode_prompt(tokenizer, one["prompt"])) <= max_prompt
        and len(encode_content(tokenizer, one["completion"])) <= max_trace
    ]
    agreed, disagreed = verified(short, verifiers, at_least)
    problems: dict[str, tuple[list[Row], list[Row]]] = {}
    for one, right in zip(short, agreed, strict=True):
        problems.setdefault(normalised(one["prompt"]), ([], []))[0 if right else 1].append(one)
    positives = {
        (key, one["completion"]): {"prompt": one["prompt"], "response": one["completion"]}
        for key, (rights, _) in problems.items()
        for one in rights
    }
    pairs = [_pair(rights[0], wrongs[0]) for rights, wrongs in problems.values() if rights and wrongs]
    if not pairs:
        raise ConfigError(
            f"none of {len(problems)} problems has both a right and a wrong trace ({sum(agreed)} of {len(short)} are "
            "right); sample more completions per problem, or problems of another difficulty."
        )
    for name, rows in (("positives", [*positives.values()]), ("pairs", pairs)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        atomic_write_text(Path(out) / f"{name}.jsonl", text)
    print(
        f"{len(traces)} traces of {len(problems)} problems: {len(traces) - len(short)} too long, {sum(agreed)} right, "
        f"{disagreed} on which the verifiers differ (wrong). {len(positives)} different right traces and {len(pairs)} "
        f"pairs are in {out}."
    )


def expanded(pattern: str) -> list[str]:
    """The files that a pattern names; the pattern itself if no file matches."""
    return sorted(glob.glob(pattern)) or [pattern]


def recorded_traces(path: str, known: dict[Any, Row]) -> list[Row]:
    """Completions of a file with their data columns, `completion` and `finish`.

    Args:
        path: recorded rollouts, predictions.jsonl, or a file with `prompt` and `completion`.
        known: data rows by the id that predictions name.
    """
    traces = []
    for number, record in enumerate(read_rows(path)):
        columns = json.loads(record["row"]) if "row" in record else known.get(record.get("id"), record)
        completion = record.get("completion", record.get("response"))
        if not isinstance(completion, str) or columns.get("prompt") is None:
            raise ConfigError(
                f"row {number} of {path} has no prompt and completion, only {sorted(record)}; name rollouts of "
                "callbacks.RolloutRecorder, predictions.jsonl, or a file with `prompt` and `completion`."
            )
        traces.append(columns | {"completion": completion, "finish": record.get("finish", "eos")})
    return traces


def verified(traces: list[Row], verifiers: list[Reward], at_least: float) -> tuple[list[bool], int]:
    """(whether each trace is right, number of traces on which the verifiers differ)."""
    agreed: list[bool] = []
    disagreed = 0
    for start in range(0, len(traces), AT_ONCE):
        part = traces[start : start + AT_ONCE]
        names = set.intersection(*(set(one) for one in part)) - {"prompt", "completion", "id"}
        columns: dict[str, Any] = {name: [one[name] for one in part] for name in names}
        texts, prompts = [one["completion"] for one in part], [one["prompt"] for one in part]
        scores = [verifier.evaluate(texts, prompts, **columns) for verifier in verifiers]
        verdicts = [[score >= at_least - 1e-6 for score in row] for row in zip(*scores, strict=True)]
        disagreed += sum(len(set(row)) > 1 for row in verdicts)
        agreed += [all(row) and one["finish"] != "length" for row, one in zip(verdicts, part, strict=True)]
    return agreed, disagreed


def _pair(right: Row, wrong: Row) -> Row:
    return {
        "prompt": right["prompt"],
        "response_0": right["completion"],
        "response_1": wrong["completion"],
        "better_response_id": 0,
        "ended_0": True,
        "ended_1": wrong["finish"] != "length",
    }


if __name__ == "__main__":
    try:
        auto_cli(main, as_positional=False)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
