"""Preference pairs in the formats of PKU-SafeRLHF, Anthropic HH and TRL."""

import re
from dataclasses import dataclass
from typing import Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from datamodules.rows import Row, check_rows, read_rows
from datamodules.samplers.prompt_sampler import PromptLoader, RowSampler
from datamodules.trl import preference
from support.errors import ConfigError
from support.prompt_identity import split_by_prompt
from support.seeding import run_seed

#: columns of a CSV file that are labels, not texts
LABELS = (
    *("better_response_id", "safer_response_id", "is_response_0_safe", "is_response_1_safe"),
    *("ended_0", "ended_1"),
)


@dataclass
class PairSource:
    """Source and format of preference pairs.

    Args:
        source: a file, a folder or owner/name on the hub.
        split, subset: split and configuration name of a hub data set.
        format: pku has prompt, response_0, response_1, is_response_0_safe, is_response_1_safe, better_response_id,
            safer_response_id, and may have ended_0 and ended_1, false for a response that was cut off; hh has chosen
            and rejected dialogues; trl has chosen and rejected as texts or messages, with the prompt as a column of its
            own or as their first messages.
        columns: the format's column name -> the data's.
        limit: maximum number of rows; all if None.
    """

    source: str
    split: str = "train"
    subset: str | None = None
    format: Literal["pku", "hh", "trl"] = "pku"
    columns: dict[str, str] | None = None
    limit: int | None = None

    def rows(self) -> list[Row]:
        """Pairs with the columns prompt, response_0, response_1, better and, where there are safety labels, safer,
        unsafe_0, unsafe_1."""
        raw = read_rows(self.source, self.split, self.columns, self.subset, LABELS)[: self.limit]
        if self.format == "hh":
            check_rows(raw, self.source, ("chosen", "rejected"))
            return self._hh_pairs(raw)
        if self.format == "trl":
            check_rows(raw, self.source, ("chosen", "rejected"), texts=False)
            return check_rows([preference(row) for row in raw], self.source, ("prompt", "response_0", "response_1"))
        check_rows(raw, self.source, ("prompt", "response_0", "response_1", "better_response_id"))
        for row in raw:
            for column in ("better_response_id", "safer_response_id"):
                if row.get(column) not in (0, 1, None):
                    raise ConfigError(
                        f"row {row['id']} of {self.source} has {column} = {row[column]!r}; it must be 0 or 1. Correct "
                        "or drop the row."
                    )
        return [{"id": row["id"], **_from_pku(row)} for row in raw]

    def _hh_pairs(self, raw: list[Row]) -> list[Row]:
        """The pairs of rows in HH's format; the few others in the published files are left out.

        Raises:
            ConfigError: where they are more than 1 %.
        """
        pairs = [(row["id"], _from_hh(row)) for row in raw]
        wrong = [row_id for row_id, pair in pairs if pair is None]
        if len(wrong) > 0.01 * len(raw):
            raise ConfigError(
                f"row {wrong[0]} of {self.source} is not an HH pair (as {len(wrong)} of {len(raw)} rows): `chosen` and "
                "`rejected` must share every turn except the last, which must be the assistant's. Set "
                "data.pairs.format (or data.preferences.format) to pku for data with separate columns."
            )
        if wrong:
            rank_zero_warn(
                f"{len(wrong)} of {len(raw)} rows of {self.source} are left out, the first of them row {wrong[0]}: "
                "`chosen` and `rejected` must share every turn except the last, which must be the assistant's."
            )
        return [{"id": row_id, **pair} for row_id, pair in pairs if pair is not None]


def _from_pku(row: Row) -> Row:
    pair = {name: row[name] for name in ("prompt", "response_0", "response_1")}
    pair["better"] = int(row["better_response_id"])
    if row.get("safer_response_id") is not None:
        pair["safer"] = int(row["safer_response_id"])
    for i in (0, 1):
        if row.get(f"is_response_{i}_safe") is not None:
            pair[f"unsafe_{i}"] = not row[f"is_response_{i}_safe"]
        if row.get(f"ended_{i}") is not None:
            pair[f"ended_{i}"] = bool(row[f"ended_{i}"])
    return pair


def parse_dialogue(text: str) -> list[dict[str, str]]:
    """Messages of a dialogue in HH's format: turns that begin with a line "Human:" or "Assistant:"."""
    parts = re.split(r"\n\n(Human|Assistant):", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[role], "content": content.strip()}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _from_hh(row: Row) -> Row | None:
    """The pair of a row in HH's format; None where the sides differ before the last turn, or do not end with one."""
    chosen, rejected = parse_dialogue(row["chosen"]), parse_dialogue(row["rejected"])
    if not chosen or chosen[-1]["role"] != "assistant" or not rejected or chosen[:-1] != rejected[:-1]:
        return None
    return {
        "prompt": chosen[:-1],
        "response_0": chosen[-1]["content"],
        "response_1": rejected[-1]["content"],
        "better": 0,
    }


class PreferencePairs(L.LightningDataModule):
    """Preference pairs for reward and cost models and preference tuning.

    Training and held-out pairs have no prompt in common.

    Args:
        pairs: source of the pairs.
        batch_size: pairs per step, over all processes.
        val_share: fraction of the prompts that are held out.
        seed: seed of their order; the run's seed if None.
    """

    def __init__(
        self, pairs: PairSource, batch_size: int = 16, val_share: float = 0.1, seed: int | None = None
    ) -> None:
        super().__init__()
        self.pairs, self.batch_size, self.val_share = pairs, batch_size, val_share
        self.seed = run_seed() if seed is None else seed
        self.train_data: list[Row] = []
        self.val_data: list[Row] = []

    def setup(self, stage: str) -> None:
        if not self.train_data:
            self.train_data, self.val_data = split_by_prompt(self.read(), self.val_share)

    def read(self) -> list[Row]:
        """All rows, before they are divided."""
        return self.pairs.rows()

    def train_dataloader(self) -> PromptLoader:
        assert self.trainer is not None
        sampler = RowSampler(
            len(self.train_data), self.batch_size, self.seed, self.trainer.global_rank, self.trainer.world_size
        )
        return PromptLoader(self.train_data, sampler)

    def _evaluation_loader(self) -> DataLoader[Row]:
        return DataLoader(self.val_data, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = _evaluation_loader
