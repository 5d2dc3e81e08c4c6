"""An HTML page of completions whose tokens are coloured by advantage, KL or surprise.

    python -m cli.inspect runs/RUN/predictions.jsonl
    python -m cli.inspect runs/RUN/rollouts/rollout_000012.parquet --colour advantage --limit 50

Writes one self-contained HTML file beside the input. Colours: `advantage` (blue positive, red negative), `kl`
(log policy / reference of the token, where the reference is recorded), `surprise` (-log-prob of the token, orange); by
default the first of these that the file has.
"""

import argparse
import html
import json
import math
from pathlib import Path
from typing import Any

from pyarrow.lib import ArrowException

from support.errors import ConfigError
from support.files import atomic_write_text

STYLE = (
    "body{font:15px/1.6 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "article{border-top:1px solid #ddd;padding:.6rem 0}p{margin:.3rem 0}.prompt{color:#666;white-space:pre-wrap}"
    ".text{font-family:ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}small{color:#555}"
    ".environment{color:#777;background:#eee}.turn{color:#555;font-size:.8em;border:1px solid #bbb;padding:0 .3em}"
)
BLUE, RED, ORANGE = "31,97,200", "200,50,40", "235,130,20"
COLOURS = ("advantage", "kl", "surprise")


def token_values(row: dict[str, Any], colour: str) -> list[float] | None:
    """One number per token; None where the record has none."""
    count = len(row["tokens"])
    if colour == "advantage":
        advantage = row.get("advantage")
        return advantage if advantage is None or isinstance(advantage, list) else [advantage] * count
    if colour == "kl":
        reference = row.get("reference_logprobs")
        if reference is None:
            return None
        return [policy_value - value for policy_value, value in zip(row["logprobs"], reference, strict=True)]
    return [-value for value in row["logprobs"]]


def coloured(tokens: list[str], values: list[float], turns: list[int] | None, scale: float, colour: str) -> str:
    """Spans whose background is stronger the larger the absolute value is; the environment's tokens are grey.

    Args:
        turns: number of each token's turn, -1 on the environment's tokens; None for completions of one turn.
    """
    spans, begun = [], -1
    for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
        if turns is not None and turns[place] > begun:
            begun = turns[place]
            spans.append(f'<span class="turn">turn {begun + 1}</span>')
        if turns is not None and turns[place] < 0:
            spans.append(f'<span class="environment">{html.escape(token) or "&#9633;"}</span>')
            continue
        strength = min(1.0, abs(value) / scale)
        tone = ORANGE if colour == "surprise" else BLUE if value > 0 else RED
        text = html.escape(token) or "&#9633;"
        spans.append(f'<span style="background:rgba({tone},{strength:.2f})" title="{value:.4g}">{text}</span>')
    return "".join(spans)


def page(rows: list[dict[str, Any]], colour: str, title: str) -> str:
    """The whole document. The 98th percentile of the absolute values, and above, has full colour."""
    values = [token_values(row, colour) or [0.0] * len(row["tokens"]) for row in rows]
    sizes = sorted(
        abs(value)
        for row, row_values in zip(rows, values, strict=True)
        for value, turn in zip(row_values, row.get("turn") or [0] * len(row_values), strict=True)
        if turn >= 0
    )
    # Scaled by the maximum, a single outlier would leave all others white.
    scale = (sizes[math.ceil(0.98 * (len(sizes) - 1))] or sizes[-1] if sizes else 0.0) or 1.0
    articles = []
    for row, row_values in zip(rows, values, strict=True):
        facts = [
            f"{name} {value:.4g}" for name, value in row.items() if name.startswith("reward/") and value is not None
        ]
        facts += [f"advantage {row['advantage']:.4g}"] if isinstance(row.get("advantage"), float) else []
        if row.get("turn") is not None:
            rewards = ["none" if value is None else f"{value:.4g}" for value in row["turn_rewards"]]
            facts += [f"{len(rewards)} turns ({', '.join(row['turn_finish'])}) with rewards {', '.join(rewards)}"]
        facts += [f"{row['length']} tokens", str(row["finish"]), f"id {row['id']}"]
        articles.append(
            f'<article><p class="prompt">{html.escape(str(row["prompt"]))}</p>'
            f'<p class="text">{coloured(row["tokens"], row_values, row.get("turn"), scale, colour)}</p>'
            f"<small>{html.escape(', '.join(facts))}</small></article>"
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<p>Coloured by {colour}; full colour is {scale:.4g} and above. A box is the end token, grey text is the "
        f"environment's. Point at a token for its number.</p>{''.join(articles)}</html>\n"
    )


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL or Parquet file.

    Raises:
        ConfigError: for a file that does not exist, or whose rows are not completions.
    """
    if not path.is_file():
        raise ConfigError(
            f"the file {path} does not exist. "
            "Write one with: python main.py predict --ckpt_path runs/RUN/checkpoints/FILE.ckpt"
        )
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        problem = "it is empty" if not rows else ""
    except (ValueError, RecursionError, OSError, ArrowException) as error:  # not JSON, not UTF-8 or not Parquet
        rows, problem = [], f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    for number, row in enumerate(rows, 1):
        if not problem and (fault := _fault(row)):
            problem = f"row {number}: {fault}"
    if problem:
        raise ConfigError(
            f"{path} holds no completions with tokens and log-probs ({problem}). Name the predictions.jsonl of an "
            "on-policy method, or a rollout recorded by callbacks.RolloutRecorder."
        )
    return rows


def _fault(row: Any) -> str | None:
    """The fault of a record; None for a completion as rollouts/completion_records.py writes them."""
    if not isinstance(row, dict):
        return f"it is {str(row)[:40]!r}"
    if missing := [name for name in ("tokens", "logprobs", "prompt", "length", "finish", "id") if name not in row]:
        return f"it has no {missing[0]!r}"
    tokens = row["tokens"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return "its 'tokens' are not texts"
    for name in ("logprobs", "reference_logprobs", "advantage"):
        values = row.get(name)
        if isinstance(values, list) and not (len(values) == len(tokens) and all(map(_is_number, values))):
            return f"its {name!r} is not one number per token"
        if not isinstance(values, list) and values is not None and not (name == "advantage" and _is_number(values)):
            return f"its {name!r} is {str(values)[:40]!r}"
    if (turns := row.get("turn")) is not None:
        if not isinstance(turns, list) or len(turns) != len(tokens) or not all(type(turn) is int for turn in turns):
            return "its 'turn' is not one whole number per token"
        rewards, reasons = row.get("turn_rewards"), row.get("turn_finish")
        if not isinstance(rewards, list) or not all(value is None or _is_number(value) for value in rewards):
            return "its 'turn_rewards' are not numbers"
        if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
            return "its 'turn_finish' are not texts"
    wrong = [n for n, value in row.items() if n.startswith("reward/") and value is not None and not _is_number(value)]
    return f"its {wrong[0]!r} is not a number" if wrong else None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)


def main(arguments: list[str] | None = None) -> Path:
    """Write the page, and return its path."""
    parser = argparse.ArgumentParser(prog="python -m cli.inspect", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path, help="predictions.jsonl, or a recorded rollout (.parquet)")
    parser.add_argument("--colour", choices=COLOURS, help="default: the first of these that the file has")
    parser.add_argument("--limit", type=int, default=200, help="maximum number of completions shown (default: 200)")
    options = parser.parse_args(arguments)
    rows = read(options.file)[: options.limit]
    colour = options.colour or next(name for name in COLOURS if token_values(rows[0], name) is not None)
    if any(token_values(row, colour) is None for row in rows):
        raise ConfigError(
            f"{options.file} has no {colour} for its tokens. Choose another: --colour {' or --colour '.join(COLOURS)}"
        )
    out: Path = options.file.with_suffix(".html")
    atomic_write_text(out, page(rows, colour, f"{options.file.name} by {colour}"))
    print(f"The page is {out}")
    return out


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
