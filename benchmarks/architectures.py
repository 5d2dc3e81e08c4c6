"""The matrix of architectures: every causal family of transformers against plain forwards and peft.

    python -m benchmarks.architectures [family ...]

Writes the table of docs/models.md when no family is named. Each cell compares log-probs with those of plain, unpadded
forwards of a model that transformers and peft load themselves.
"""

import re
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.families import FAMILIES
from benchmarks.tiny_models import Family, build
from policies import LoRA, Policy, PolicyParams
from rollouts import EmbeddedEngine, SamplingParams
from rollouts.transformers_engine import WAYS
from support.errors import ConfigError
from support.seeding import isolated_rng

#: prompts of mixed length; with completions they exceed the windows of benchmarks.tiny_models
PROMPTS = [[5 + (3 * i) % 40 for i in range(22)], [9, 14, 6], [4 + (7 * i) % 30 for i in range(9)]]
NEW_TOKENS = 10
#: mean difference of log-probs, and largest one, from which a cell is wrong
MEAN, LARGEST = 1e-4, 1e-3
PAGE = Path(__file__).resolve().parent.parent / "docs/models.md"
#: what stands before the table
MARK = "<!-- written by `make architectures` -->"
COLUMNS = ("rollout", "update", "LoRA", "LoRA on head and embedding")
#: parts of a message that differ between models of one kind
_NAMES = re.compile(r"\[.*?\]|\{.*?\}|'[^']*'|\(.*?\)|\S*[._/]\S*|\w*(?:LM|Model)\w*")


@dataclass
class Cell:
    """The entry of one column of the table.

    Fields:
        gap: mean difference of log-probs; None where the model is refused.
        largest: the largest difference.
        way: the way in which it is computed, or the message that refuses it.
    """

    gap: float | None
    largest: float = 0.0
    way: str = ""

    @property
    def wrong(self) -> bool:
        return self.gap is not None and not (self.gap <= MEAN and self.largest <= LARGEST)


@torch.no_grad()
def plain_logprobs(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probs of a completion by one forward without padding."""
    logits = model.eval()(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[
        0, len(prompt) - 1 : -1
    ]
    return logits.float().log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def compared(values: Tensor, lengths: list[int], model: Any, completions: list[list[int]], way: str) -> Cell:
    """Rows of log-probs against plain forwards of a model; the rows' prompts are PROMPTS, in equal groups."""
    size = len(completions) // len(PROMPTS)
    gaps = torch.cat(
        [
            (values[row, : lengths[row]] - plain_logprobs(model, PROMPTS[row // size], tokens)).abs()
            for row, tokens in enumerate(completions)
        ]
    )
    return Cell(float(gaps.mean()), float(gaps.max()), way)


def rolled(policy: Policy) -> tuple[Any, str]:
    """A rollout, and which engine made it."""
    engine = EmbeddedEngine()
    with isolated_rng(1):
        batch = engine.generate(policy, PROMPTS, [{"id": i} for i in range(3)], 2, SamplingParams(NEW_TOKENS))
    if all(engine._checked.values()):
        return batch, "embedded"
    way = engine._other.ways.get(False, WAYS[1])
    by_length = way.by_length or policy.scoring == "by_length"
    return batch, "generate" + (", by length" if by_length else "") + ("" if way.cache else ", no cache")


def rollout_and_update(policy: Policy, model: Any) -> tuple[Cell, Cell]:
    """Sampling, and scoring in the mode of updates, against a plain model."""
    batch, engine = rolled(policy)
    completions = [ids[mask].tolist() for ids, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)]
    lengths = [len(tokens) for tokens in completions]
    policy.train()
    groups = batch.prompt_groups(torch.arange(len(completions)))
    scored = policy.logprobs(groups)[0].detach()
    return (
        compared(batch.behaviour_logprobs, lengths, model, completions, engine),
        compared(scored, lengths, model, completions, str(policy.scoring).replace("_", " ")),
    )


def move_adapters(policy: Policy) -> None:
    """Adapters that act."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def adapted(folder: Path, scratch: Path, targets: str | list[str]) -> Cell:
    """Sampling, scoring, adapter folder and merged folder of a policy with adapters: the worst of the four."""
    policy = Policy(PolicyParams(str(folder), lora=LoRA(r=4, alpha=8, target_modules=targets)))
    policy.check(PROMPTS)
    move_adapters(policy)
    policy.save_adapter(scratch / "adapter")
    policy.save(scratch / "merged")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if hasattr(base.config, "rescale_every"):
        base.config.rescale_every = 0  # adapters are not rescaled with their layer
    before = plain_logprobs(base, PROMPTS[0], PROMPTS[1])
    try:
        policy.check_adapter_folder()
        model, remark = PeftModel.from_pretrained(base, scratch / "adapter"), ""
    except ConfigError:
        model, remark = policy.model, ", no adapter folder"
    acts = float((plain_logprobs(model, PROMPTS[0], PROMPTS[1]) - before).abs().max())
    if acts < 2 * LARGEST:
        return Cell(float("nan"), acts, "the adapter has no effect")
    rollout, update = rollout_and_update(policy, model)
    merged = AutoModelForCausalLM.from_pretrained(scratch / "merged", dtype=torch.float32)
    exported = torch.stack([plain_logprobs(merged, prompt, PROMPTS[1]) for prompt in PROMPTS])
    expected = torch.stack([plain_logprobs(model, prompt, PROMPTS[1]) for prompt in PROMPTS])
    gaps = (exported - expected).abs()
    cells = [rollout, update, Cell(float(gaps.mean()), float(gaps.max()), "export")]
    worst = max(cells, key=lambda cell: (cell.wrong, cell.gap))
    return Cell(worst.gap, worst.largest, (worst.way if worst.wrong else "exact") + remark)


def head_and_embedding(policy: Policy) -> list[str]:
    """Names of the output layer and the embedding."""
    parts = (policy.bare.get_output_embeddings(), policy.bare.get_input_embeddings())
    return [name for name, module in policy.bare.named_modules() if module in parts]


def guarded(compute: Callable[[], Any]) -> Any:
    """The cell, or one with the message that refuses the model."""
    try:
        return compute()
    except ConfigError as error:
        return Cell(None, way=str(error))


def row(family: Family, columns: Sequence[str] = COLUMNS) -> dict[str, Cell]:
    """The cells of a family by column."""
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place)
        build(family, folder / "model")
        cells: dict[str, Cell] = {}
        policy = guarded(lambda: Policy(PolicyParams(str(folder / "model"))))
        if isinstance(policy, Cell):
            return dict.fromkeys(columns, policy)
        if {"rollout", "update"} & set(columns):
            plain = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
            both = guarded(lambda: rollout_and_update(policy, plain))
            cells["rollout"], cells["update"] = both if isinstance(both, tuple) else (both, both)
        targets = {"LoRA": "all-linear", "LoRA on head and embedding": head_and_embedding(policy)}
        for column in (name for name in columns if name in targets):
            cells[column] = guarded(partial(adapted, folder / "model", folder / column, targets[column]))
        return {name: cells[name] for name in columns}


def table(rows: dict[str, dict[str, Cell]]) -> str:
    """The table in Markdown, and the messages that refuse a model, one of each kind."""
    kinds: dict[str, tuple[int, str, str]] = {}
    lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, cells in rows.items():
        texts = []
        for cell in cells.values():
            if cell.gap is None:
                kind = _NAMES.sub("", re.sub(r"but .* share", "but share", cell.way.partition(" Its layers")[0]))
                number, *_ = kinds.setdefault(kind, (len(kinds) + 1, name, cell.way))
                texts.append(f"refused ({number})")
            else:
                texts.append(f"**off by {cell.gap:.2g}** ({cell.way})" if cell.wrong else cell.way)
        lines.append(f"| {name} | {' | '.join(texts)} |")
    notes = [
        f"{number}. {name}: {re.sub(r'/[^ ,)]*/model', './model', message)}" for number, name, message in kinds.values()
    ]
    return "\n".join(lines) + "\n\nThe messages:\n\n" + "\n".join(map(wrapped, notes)) + "\n"


def wrapped(note: str) -> str:
    """A numbered item in lines of at most 120 characters."""
    return textwrap.fill(note, 120, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)


def main(names: list[str]) -> None:
    """Compute the rows of the named families, of all if none is named; these are written into the page."""
    rows = {}
    for family in FAMILIES:
        if not names or str(family) in names:
            rows[str(family)] = cells = row(family)
            ways = [f"{cell.way} {'refused' if cell.gap is None else f'{cell.gap:.0e}'}" for cell in cells.values()]
            print(f"{family!s:24}", " | ".join(ways), flush=True)
    wrong = [name for name, cells in rows.items() if any(cell.wrong for cell in cells.values())]
    if not names:
        head, _ = PAGE.read_text(encoding="utf-8").split(MARK)
        PAGE.write_text(f"{head}{MARK}\n\n{table(rows)}", encoding="utf-8")
    if wrong:
        raise SystemExit(f"wrong log-probs: {', '.join(wrong)}")


if __name__ == "__main__":
    main(sys.argv[1:])
