"""The base class of modules that measure a policy on multiple-choice rows, in `main.py test` and nowhere else."""

import json
from typing import Any

import lightning as L

from lightning_modules.core.data_checks import data_splits, rows_of
from lightning_modules.core.posttrain_module import PosttrainModule
from lightning_modules.core.saved_weights import check_weights
from objectives.stress import Interval
from policies.config_checks import check_length
from support.errors import ConfigError
from support.seen_prompts import SeenPrompts

Rows = list[dict[str, Any]]
NEEDED = ("prompt", "choices", "labels", "answer")
#: settings of a policy that decide which model a checkpoint's weights belong to, and what it reads
IDENTITY = ("model", "lora", "open_thinking", "chat_template_args")


class ChoiceModule(PosttrainModule):
    """Measures the policy that the settings name, or that of any method's checkpoint (`--ckpt_path`).

    Args:
        policy: the model. For a checkpoint, the policy of its run; only `compute`, `packing` and `dtype` may differ.
    """

    measures_any_policy = True  #: --ckpt_path last is the newest run of any method

    def configure_callbacks(self) -> list[L.Callback]:
        """No callbacks; it is Lightning's first call in a run, and so the place to refuse other stages than test."""
        if self.trainer.state.fn != "test":
            raise ConfigError(
                f"{type(self).__name__} measures a policy and does not train one; start it with python main.py test "
                "--config ..., for a trained policy with --ckpt_path."
            )
        return []

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

    # ---- checkpoints of other methods --------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the policy out of the checkpoint of any method; a critic, a reference and the optimiser stay behind."""
        self._check_identity(checkpoint)
        self.configure_model()
        if "seen_prompts" in checkpoint:
            self._seen.update(SeenPrompts.from_state_dict(checkpoint["seen_prompts"]))
        if "state_dict" not in checkpoint:  # in shards, which the strategy loads and checks
            return
        expected = self.state_dict()
        kept = {name: weight for name, weight in checkpoint["state_dict"].items() if name in expected}
        if not kept:
            raise ConfigError(
                f"the checkpoint was made by {checkpoint.get('module') or 'another program'} and holds none of the "
                f"weights of {self.policy_params.model}; name a checkpoint of a language model with --ckpt_path."
            )
        check_weights(expected, kept, self._rebuilt_from_config(), self.no_reference)
        checkpoint["state_dict"] = kept

    def _check_identity(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another policy than the settings name, with the settings that fit."""
        saved = (checkpoint.get("hyper_parameters") or {}).get("policy")
        if not isinstance(saved, dict):  # of a module that was built in Python
            return
        wanted = {name: saved[name] for name in IDENTITY if name in saved}
        differing = {name: value for name, value in wanted.items() if plain(getattr(self.policy_params, name)) != value}
        if differing:
            flags = " ".join(f"--model.policy.{name} '{json.dumps(value)}'" for name, value in differing.items())
            raise ConfigError(
                f"the checkpoint is of a run with another policy than these settings. Add: {flags.replace(chr(34), '')}"
            )


def check_choices(row: dict[str, Any], reader: str) -> None:
    """Refuse a row that is not a multiple-choice question. Raises ConfigError."""
    if missing := [name for name in NEEDED if row.get(name) is None]:
        raise ConfigError(
            f"{reader} reads multiple-choice questions, but row {row.get('id')!r} has no {missing[0]!r}. Use "
            "datamodules.StressQuestions or datamodules.ChoiceQuestions, which make such rows from the columns "
            "question, choices and answer."
        )


def plain(value: Any) -> Any:
    """A part of a policy's settings as plain data."""
    return vars(value) if hasattr(value, "__dict__") else value


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
