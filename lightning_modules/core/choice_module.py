"""The base class of modules that measure a policy on multiple-choice rows, in `main.py test` and nowhere else."""

from typing import Any

from lightning_modules.core.data_checks import data_splits, rows_of
from lightning_modules.core.measuring import MeasuringModule
from objectives.stress import Interval
from policies.config_checks import check_length
from support.errors import ConfigError

Rows = list[dict[str, Any]]
NEEDED = ("prompt", "choices", "labels", "answer")


class ChoiceModule(MeasuringModule):
    """Measures the policy that the settings name, or that of any method's checkpoint (`--ckpt_path`).

    Args:
        policy: the model. For a checkpoint, the policy of its run; only `compute`, `packing` and `dtype` may differ.
    """

    def setup(self, stage: str) -> None:
        self.configure_model()
        for row in data_splits(self.trainer, "test").get("test", []):
            self.check_row(row)
            # A token has at least one byte, so short prompts fit without being encoded.
            if len(str(row["prompt"]).encode()) + 256 > (self.policy.context or 1 << 40):
                check_length(self.policy.bare.config, len(self.policy.encode(row["prompt"])) + 1, f"row {row['id']!r}")

    def choice_rows(self, batch: Any) -> Rows:
        """The rows of a batch, whatever collated it. Raises ConfigError for rows without options."""
        rows = rows_of(batch, [], bool(data_splits(self.trainer, "test")))
        for row in rows:
            self.check_row(row)
        return rows

    def check_row(self, row: dict[str, Any]) -> None:
        """Refuse a row that this module cannot measure. Raises ConfigError."""
        check_choices(row, type(self).__name__)

    def log_figures(self, figures: dict[str, Any]) -> None:
        """Log nested figures, equal on all processes, under test/ and their path; the report has all of them."""
        for name, value in flat(figures).items():
            self.log(f"test/{name}", value, sync_dist=True)


def check_choices(row: dict[str, Any], reader: str) -> None:
    """Refuse a row that is not a multiple-choice question. Raises ConfigError."""
    if missing := [name for name in NEEDED if row.get(name) is None]:
        raise ConfigError(
            f"{reader} reads multiple-choice questions, but row {row.get('id')!r} has no {missing[0]!r}. Use "
            "datamodules.StressQuestions or datamodules.ChoiceQuestions, which make such rows from the columns "
            "question, choices and answer."
        )


def flat(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers by path; an interval as `path`, `path/low` and `path/high`, and nothing for an undefined one."""
    numbers: dict[str, float] = {}
    for name, value in figures.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            numbers |= flat(value, f"{path}/")
        elif isinstance(value, Interval):
            numbers |= {path: value.mean, f"{path}/low": value.low, f"{path}/high": value.high}
        elif value is not None:
            numbers[path] = float(value)
    return numbers
