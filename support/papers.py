"""The facts about each paper, kept once, in the file that implements it.

A file in one of the `ROOMS` ends with a block of literals:

    PAPER = Paper(name="shorter_better", title="ShorterBetter", arxiv="2504.21370", ...)

The tables of README.md and docs/papers.md (`make pages`), the contents of the site, the methods of `benchmarks.compare`
and the experiments of `benchmarks/papers.py` are made from these blocks. A paper that only chooses objectives is a
file in configs/objectives/, whose first comment states the same: "# TITLE (arXiv NUMBER): what it changes."

Blocks are read from the source text, so that a list of all papers does not import torch and every method.
"""

import ast
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from support.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "lightning_modules", "objectives", "environments", "rewards", "callbacks", "datamodules", "policies", "rollouts",
)  # fmt: skip
Settings = dict[str, Any]
_BLOCK = re.compile(r"^\w+ = Paper\(", re.MULTILINE)
_HEAD = re.compile(r"(?P<title>[^:(]+?)(?: \((?P<source>[^)]*)\))?: (?P<idea>.+?)\.(?:\s|$)")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An effect that the paper claims, as a difference between two arms at the end of training.

    Args:
        text: the claim.
        column: heading of one of the experiment's columns.
        sign: 1 if the first arm's value is to be larger, -1 if smaller, 0 if it is to be no worse than `margin` below.
        arm: the paper's arm by default.
        against: another arm, "start" for the same arm's first validation, "grpo, equal tokens" to compare both at the
            smaller number of generated tokens, or a number.
        against_column: heading of the other arm's column, where it is another one.
        margin: of sign 0, in units of the column.
    """

    text: str
    column: str
    sign: int
    arm: str = ""
    against: str | float = "grpo"
    against_column: str = ""
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The paper beside plain GRPO on an embedded model, with three seeds; run by `benchmarks/papers.py`.

    Args:
        rollouts: of every arm.
        arms: arm -> settings after the paper's configuration; the key "config" replaces that configuration by a list of
            others. The first arm is the paper's, and the arm "grpo" is plain GRPO on the same prompts.
        columns: heading -> metric. Metrics of validation are shown before the first rollout and at the end, others at
            the end.
        expect: the effect that the experiment should show.
        validate_every: rollouts between two validations; few, so that arms can be compared at equal numbers of tokens.
        claims: what the table of claims tests.
    """

    rollouts: int
    arms: dict[str, Settings]
    columns: dict[str, str]
    expect: str
    validate_every: int = 5
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One method that a configuration runs.

    Args:
        name: an identifier: of its results, its pictures and, in the comparison, on the command line.
        title: as people call it.
        idea: what it does or changes, in half a sentence.
        configs: names in configs/ without .yaml, in the order of the command line. Where `not_compared` is set they may
            also be the stages of a pipeline or alternatives.
        arxiv: number, "" for none.
        classes: class paths of what implements it.
        effect: its effect on an embedded model, with figures; "" if nothing was measured.
        page: name of its page in docs/ without .md, `name` by default; "" for none.
        comparison: settings after configs/compare.yaml, which put lengths and counts of rollouts in proportion to the
            common task.
        not_compared: why `benchmarks.compare` leaves it out; "" if it takes part.
        experiment: beside plain GRPO, if there is one.
    """

    name: str
    title: str
    idea: str
    configs: tuple[str, ...]
    arxiv: str = ""
    classes: tuple[str, ...] = ()
    effect: str = ""
    page: str | None = None
    comparison: Settings = field(default_factory=dict)
    not_compared: str = ""
    experiment: Experiment | None = None


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(_value(element) for element in node.elts)
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    kinds = {"Paper": Paper, "Experiment": Experiment, "Claim": Claim}
    if not isinstance(node.func, ast.Name) or node.func.id not in kinds or node.args:
        raise ValueError(f"{ast.unparse(node.func)}(...)")
    return kinds[node.func.id](**{str(keyword.arg): _value(keyword.value) for keyword in node.keywords})


def blocks(path: Path) -> list[Paper]:
    """The blocks of a Python file, in the order of its lines.

    Raises:
        ConfigError: for a value that is not a literal, or a field that does not exist.
    """
    text = path.read_text()
    papers = []
    for node in ast.parse(text).body if _BLOCK.search(text) else []:
        call = node.value if isinstance(node, ast.Assign) else None
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "Paper":
            continue
        try:
            papers.append(_value(call))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"The Paper block at {path}:{node.lineno} cannot be read ({error}). It is read without importing the "
                "file, so every field must be a keyword of support.papers.Paper, Experiment or Claim with a literal "
                "value: write the value out."
            ) from error
    return papers


def by_publication(papers: list[Paper]) -> dict[str, Paper]:
    """Papers by name, in the order of their arXiv numbers; what has no number comes last."""
    ordered = sorted(papers, key=lambda paper: (paper.arxiv or "none", paper.name))
    named = {paper.name: paper for paper in ordered}
    if len(named) < len(ordered):
        twice = next(paper.name for paper in ordered if named[paper.name] is not paper)
        raise ConfigError(f"Two Paper blocks have the name {twice!r}. Names must differ: rename one of the two.")
    return named


@lru_cache(maxsize=1)
def all_papers() -> dict[str, Paper]:
    """Every block of the project by name, in the order of publication.

    Raises:
        ConfigError: for a block that cannot be read, or two blocks of one name.
    """
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    return by_publication([paper for file in files for paper in blocks(file)])


def heading(path: Path) -> re.Match[str] | None:
    """The title, source and idea in a configuration's first comment; None for a comment of another form."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return _HEAD.match(" ".join(line.lstrip("# ") for line in comment))


def objective(path: Path) -> Paper:
    """The facts that the first comment of a configuration of objectives states.

    Raises:
        ConfigError: for a comment of another form.
    """
    head = heading(path)
    if head is None:
        raise ConfigError(
            f"{path} does not say which paper it configures. Begin it with a comment of the form "
            '"# TITLE (arXiv NUMBER): what it changes."; the part in brackets may be missing.'
        )
    number = re.search(r"arXiv (\d{4}\.\d{5})", head["source"] or "")
    return Paper(
        name=path.stem,
        title=head["title"],
        idea=head["idea"],
        configs=("grpo", f"objectives/{path.stem}"),
        arxiv=number[1] if number else "",
        page="objectives",
    )


@lru_cache(maxsize=1)
def all_objectives() -> dict[str, Paper]:
    """The configurations of configs/objectives/ by name, in the order of publication."""
    return by_publication([objective(path) for path in (ROOT / "configs/objectives").glob("*.yaml")])


def flags(settings: Settings) -> list[str]:
    """Settings as arguments of the command line: {"model.batch.refill": 1} becomes ["--model.batch.refill=1"]."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
