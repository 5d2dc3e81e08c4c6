"""Prompt groups from files or a hub data set."""

from dataclasses import dataclass

from datamodules.preferences import PairSource
from datamodules.prompt_form import FewShot, PromptForm, draw_examples, with_examples
from datamodules.prompts import PromptData, drawn_places
from datamodules.rows import Row, read_rows
from support.errors import ConfigError
from support.prompt_identity import normalised


@dataclass
class ValidationSet:
    """One of several sources that a run is validated on. Its metrics have its name: `val/pass@1/<name>`.

    Args:
        source, split, subset, columns, template, answer_pattern, numbers: as of `FilePrompts`.
    """

    source: str
    split: str = "test"
    subset: str | None = None
    columns: dict[str, str] | None = None
    template: str | None = None
    answer_pattern: str | None = None
    numbers: list[str] | None = None


class FilePrompts(PromptData):
    """Prompt groups from files or the hub.

    Args:
        source: a JSONL, JSON, parquet or CSV file (the texts also as .gz), a folder of them, or owner/name on the hub.
        split: the training split.
        subset: configuration name of a hub data set.
        val_source: another source for validation; by default the last `val_size` rows of the training split.
        val_split: split of `val_source`.
        val_size: number of held-out rows.
        safety_size: number of rows, drawn at random by the seed from those before the held-out ones, that are kept for
            a safety test.
        columns: this project's column name -> the data's, e.g. {prompt: question}.
        required: columns that every row must have.
        seed: seed of the order of the prompts; the run's seed if None.
        preferences: pairs that a method may train reward and cost models on.
        demonstrations: a source with the columns prompt and response, for a supervised term beside a method's own loss.
        numbers: columns of a CSV file that hold numbers, such as a curriculum's `level`; the cells of the others are
            texts, so that 42 and 007 stay as written.
        template: text of the user's turn with the data's columns in braces, such as
            "{question}\\nPut the final answer in \\\\boxed{{}}."; the column `prompt` as it is if None.
        system: system prompt of the prompts that have none.
        answer_pattern: regular expression with one group, whose last match in the column `answer` is the answer, such
            as "#### (.+)"; the text before it becomes the column `solution`.
        few_shot: worked examples before every prompt; none if None.
        val_sets: several sources for validation, by name, in place of `val_source`; `val_size` rows of each.
        distinct: keep the first row of each prompt, and none whose prompt is also in `preferences`; a safety test needs
            such prompts, and compares them in the same way.
    """

    def __init__(
        self,
        source: str,
        split: str = "train",
        subset: str | None = None,
        val_source: str | None = None,
        val_split: str = "test",
        val_size: int = 128,
        safety_size: int = 0,
        columns: dict[str, str] | None = None,
        required: list[str] | None = None,
        seed: int | None = None,
        preferences: PairSource | None = None,
        demonstrations: str | None = None,
        numbers: list[str] | None = None,
        template: str | None = None,
        system: str | None = None,
        answer_pattern: str | None = None,
        few_shot: FewShot | None = None,
        val_sets: dict[str, ValidationSet] | None = None,
        distinct: bool = False,
    ) -> None:
        super().__init__(seed=seed, preferences=preferences)
        if val_size < 0 or safety_size < 0:
            raise ConfigError(
                f"data.val_size is {val_size} and data.safety_size is {safety_size}; both are numbers of rows and must "
                "be 0 or above."
            )
        self.source, self.split, self.subset, self.columns = source, split, subset, columns
        self.demonstrations, self.numbers = demonstrations, numbers or []
        self.val_source, self.val_split, self.val_size, self.safety_size = val_source, val_split, val_size, safety_size
        self.required = tuple(required) if required is not None else type(self).required
        if val_source is not None and val_sets is not None:
            raise ConfigError("data.val_source and data.val_sets are both set; choose one, and set the other to null.")
        self.form, self.few_shot = PromptForm(template, system, answer_pattern), few_shot or FewShot()
        self.val_sets, self.distinct = val_sets or {}, distinct
        self._forms = {
            name: PromptForm(each.template, system, each.answer_pattern, f"data.val_sets.{name}")
            for name, each in self.val_sets.items()
        }
        self._split_rows: dict[str, list[Row]] | None = None

    def _parts(self) -> dict[str, list[Row]]:
        """The rows of the source by use: train, safety, val and examples."""
        if self._split_rows is None:
            rows = self._read(self.source, self.split)
            rows = self._distinct(rows) if self.distinct else rows
            held_out = 0 if self.val_source or self.val_sets else self.val_size
            train_size = len(rows) - held_out - self.safety_size
            if train_size <= 0:
                kind = "distinct prompts that are not in data.preferences" if self.distinct else "rows"
                raise ConfigError(
                    f"{self.source!r} has {len(rows)} {kind}; {held_out} for validation and {self.safety_size} for the "
                    "safety test leave none to train on. Lower data.val_size or data.safety_size."
                )
            rest = rows[: train_size + self.safety_size]
            drawn = drawn_places(len(rest), self.safety_size, self.seed)
            examples, train = draw_examples(
                [row for place, row in enumerate(rest) if place not in drawn], self.few_shot, self.seed
            )
            safety = [rest[place] for place in drawn]
            self._split_rows = {"train": train, "safety": safety, "val": rows[len(rest) :], "examples": examples}
        return self._split_rows

    def _read(self, source: str, split: str) -> list[Row]:
        return self.form.rows(read_rows(source, split, self.columns, self.subset, self.numbers), source)

    def _distinct(self, rows: list[Row]) -> list[Row]:
        pairs = self.preferences.rows() if self.preferences is not None else []
        known = {normalised(pair["prompt"]) for pair in pairs}
        kept = []
        for row in rows:
            text = normalised(row.get("prompt") or "")
            if not text or text not in known:  # rows without a prompt are refused later, by number
                kept.append(row)
            known.add(text)
        return kept

    def _complete(self, rows: list[Row]) -> list[Row]:
        """The rows with the worked examples before their prompts."""
        return with_examples(rows, self._parts()["examples"], self.few_shot) if self.few_shot.count else rows

    def train_rows(self) -> list[Row]:
        return self._complete(self._parts()["train"])

    def val_rows(self) -> list[Row]:
        if self.val_source:
            return self._complete(self._read(self.val_source, self.val_split)[: self.val_size])
        if not self.val_sets:
            return self._complete(self._parts()["val"])
        rows: list[Row] = []
        for name, each in self.val_sets.items():
            read = read_rows(each.source, each.split, each.columns, each.subset, each.numbers or [])[: self.val_size]
            formed = self._forms[name].rows(read, each.source)
            rows += [row | {"task": name, "id": f"{name}/{place}"} for place, row in enumerate(formed)]
        return self._complete(rows)

    def demonstration_rows(self) -> list[Row]:
        return read_rows(self.demonstrations) if self.demonstrations else []

    def safety_rows(self) -> list[Row]:
        return self._complete(self._parts()["safety"])
