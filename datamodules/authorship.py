"""Programs with their authors, for attributing code to the model that wrote it (CodeT5-Authorship, arXiv 2506.17323).

Reads the columns of LLM-AuthorBench, or writes programs by synthetic authors (datamodules/code_styles.py). Programs
that answer the same template share a task, so a split by program measures memory of tasks too; the grouped split keeps
all programs of a template on one side.

    python main.py fit --config configs/authorship.yaml
"""

import random
import re
from typing import Literal

import lightning as L
from torch.utils.data import DataLoader

from datamodules.code_styles import programs
from datamodules.rows import Row, read_rows
from datamodules.samplers.prompt_sampler import PromptLoader, RowSampler
from support.errors import ConfigError
from support.files import fingerprint
from support.prompt_identity import normalised
from support.seeding import derive_seed, run_seed

#: this project's column -> LLM-AuthorBench's
COLUMNS = {"label": "model", "text": "code", "template": "prompt"}
_VALUES = re.compile(r'"[^"\n]*"|\'[^\'\n]*\'|\d+')
_MARK = re.compile(r'//|/\*|["\']')


def without_comments(text: str) -> str:
    """A C or C++ program without its comments; what looks like one inside a literal stays.

    A block comment becomes a space, as in C. Lines that held only comments disappear.
    """
    kept, place = [], 0
    while (mark := _MARK.search(text, place)) is not None:
        start, kind = mark.start(), mark[0]
        kept.append(text[place:start])
        if kind == "//":
            place = _end_of_line(text, start)
            kept.append("\0" if _begins_line(text, start) else "")
        elif kind == "/*":
            close = text.find("*/", start + 2)
            place = len(text) if close < 0 else close + 2
            kept.append("\0" if _begins_line(text, start) and text[place : place + 1] in ("\n", "") else " ")
        else:
            place = _end_of_literal(text, start)
            kept.append(text[start:place])
    kept.append(text[place:])
    lines = "".join(kept).split("\n")
    return "\n".join(line.replace("\0", "") for line in lines if not ("\0" in line and not line.strip(" \t\0")))


def _begins_line(text: str, start: int) -> bool:
    """Whether only blanks stand before a place on its line."""
    before = start
    while before and text[before - 1] in " \t":
        before -= 1
    return before == 0 or text[before - 1] == "\n"


def _end_of_line(text: str, start: int) -> int:
    """The place of the line break that ends a line comment; one behind a backslash does not."""
    end = text.find("\n", start)
    while end > 0 and text[end - 1] == "\\":
        end = text.find("\n", end + 1)
    return len(text) if end < 0 else end


def _end_of_literal(text: str, start: int) -> int:
    """The place behind a text or character literal; one that its line does not close ends with the line."""
    place = start + 1
    while place < len(text) and text[place] not in (text[start], "\n"):
        place += 2 if text[place] == "\\" else 1
    return min(len(text), place + (place < len(text) and text[place] == text[start]))


def template_key(prompt: str) -> str:
    """The form of a prompt that all fillings of its template share: numbers and quoted texts are left out."""
    return normalised(_VALUES.sub("#", prompt))


class AuthorshipPrograms(L.LightningDataModule):
    """Rows with `text` (a program), `label` (its author) and `template` (what was asked for).

    Files have LLM-AuthorBench's columns: `model`, `code` and, for the grouped split, `prompt`. A program that occurs
    twice counts once.

    Args:
        source: styles for synthetic authors, or a file, folder or hub data set as in `FilePrompts`.
        batch_size: programs per step, over all processes.
        size: number of synthetic programs; ignored for files.
        split: random divides programs, grouped divides templates.
        val_share, test_share: fractions of the programs of every author (random) or of the templates (grouped) that
            validation and test hold out. Choose checkpoints on the first, report the second.
        comments: whether programs keep their comments.
        prefix: text before every program.
        columns: this project's column name -> the file's, if it is not LLM-AuthorBench's.
        seed: seed of the synthetic programs, of the split and of the order; the run's seed if None.
        hub_split: split of a hub data set. subset: its subset.

    Raises:
        ConfigError: for shares that leave nothing to learn from, fewer than two authors, or a split without an author.
    """

    def __init__(
        self,
        source: str = "styles",
        batch_size: int = 32,
        size: int = 20_000,
        split: Literal["random", "grouped"] = "grouped",
        val_share: float = 0.1,
        test_share: float = 0.2,
        comments: bool = True,
        prefix: str = "code: ",
        columns: dict[str, str] | None = None,
        seed: int | None = None,
        hub_split: str = "train",
        subset: str | None = None,
    ) -> None:
        super().__init__()
        if not (0 < val_share < 1 and 0 < test_share < 1 and val_share + test_share < 1):
            raise ConfigError(
                f"data.val_share is {val_share} and data.test_share {test_share}; both must be above 0 and their sum "
                "below 1, so that programs remain for training."
            )
        if batch_size < 1 or size < 1:
            raise ConfigError(f"data.batch_size is {batch_size} and data.size {size}; both must be at least 1.")
        self.source, self.batch_size, self.size, self.split = source, batch_size, size, split
        self.val_share, self.test_share, self.comments, self.prefix = val_share, test_share, comments, prefix
        self.columns, self.hub_split, self.subset = columns, hub_split, subset
        self.seed = run_seed() if seed is None else seed
        self.train_data: list[Row] = []
        self.val_data: list[Row] = []
        self.test_data: list[Row] = []

    def setup(self, stage: str) -> None:
        if self.train_data:
            return
        rows = programs(self.size, self.seed) if self.source == "styles" else self._read()
        if not self.comments:
            rows = [row | {"text": without_comments(row["text"])} for row in rows]
        rows = list({fingerprint([row["label"], row["text"]]): row for row in rows}.values())
        if len({row["label"] for row in rows}) < 2:
            raise ConfigError(f"{self.source} has programs of one author only; attribution needs two or more.")
        parts = _grouped(rows, self._shares, self.seed) if self.split == "grouped" else self._stratified(rows)
        self.val_data, self.test_data, self.train_data = (
            [row | {"text": self.prefix + row["text"]} for row in part] for part in parts
        )
        self._check_authors()

    @property
    def labels(self) -> list[str]:
        """Names of the authors, sorted; the class of an author is its place."""
        return sorted({row["label"] for row in self.train_data})

    @property
    def _shares(self) -> list[float]:
        return [self.val_share, self.test_share]

    def _read(self) -> list[Row]:
        columns = COLUMNS | (self.columns or {})
        if self.split == "random" and "template" not in (self.columns or {}):
            columns = {name: column for name, column in columns.items() if name != "template"}
        rows = read_rows(self.source, self.hub_split, columns, self.subset)
        for number, row in enumerate(rows):
            for name in columns:
                if not isinstance(row[name], str) or not row[name].strip():
                    raise ConfigError(
                        f"row {number} of {self.source} has {str(row[name])[:40]!r} in the column {columns[name]!r}, "
                        "which must be a text; correct or drop the row, or name another column in data.columns."
                    )
        return [
            {"id": str(row.get("id", number)), "label": row["label"], "text": row["text"]}
            | ({"template": template_key(row["template"])} if "template" in columns else {})
            for number, row in enumerate(rows)
        ]

    def _stratified(self, rows: list[Row]) -> list[list[Row]]:
        """The rows of every author, divided at random in the same shares."""
        parts: list[list[Row]] = [[], [], []]
        for label in sorted({row["label"] for row in rows}):
            of_author = [row for row in rows if row["label"] == label]
            for part, chosen in zip(parts, _divided(of_author, self._shares, self.seed), strict=True):
                part.extend(chosen)
        return parts

    def _check_authors(self) -> None:
        for name, part in (("validation", self.val_data), ("test", self.test_data)):
            labels = {row["label"] for row in part}
            if not part or labels - set(self.labels):
                unknown = sorted(labels - set(self.labels))
                what = f"has the author {unknown[0]!r}, whom no training program is of" if unknown else "is empty"
                raise ConfigError(
                    f"the {name} split of {self.source} {what}. Raise or lower data.val_share and data.test_share, or "
                    "set data.split to random."
                )

    def train_dataloader(self) -> PromptLoader:
        assert self.trainer is not None
        trainer = self.trainer
        sampler = RowSampler(len(self.train_data), self.batch_size, self.seed, trainer.global_rank, trainer.world_size)
        return PromptLoader(self.train_data, sampler)

    def val_dataloader(self) -> DataLoader[Row]:
        return DataLoader(self.val_data, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Row]:
        return DataLoader(self.test_data, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    predict_dataloader = test_dataloader


def _divided(items: list[Row], shares: list[float], seed: int) -> list[list[Row]]:
    """The items at random in one part per share, and a last part with the rest."""
    order = list(items)
    random.Random(derive_seed("authorship split", seed)).shuffle(order)
    parts, start = [], 0
    for share in shares:
        end = start + round(share * len(order))
        parts.append(order[start:end])
        start = end
    return [*parts, order[start:]]


def _grouped(rows: list[Row], shares: list[float], seed: int) -> list[list[Row]]:
    """The rows with all those of a template in the same part."""
    templates = [{"template": name} for name in sorted({row["template"] for row in rows})]
    chosen = [{one["template"] for one in part} for part in _divided(templates, shares, seed)]
    return [[row for row in rows if row["template"] in part] for part in chosen]
