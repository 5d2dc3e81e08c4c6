"""Measured difficulty of every prompt, as a file, a figure and an object that other callbacks read."""

import math
from collections import defaultdict
from typing import Any

import lightning as L
from matplotlib.figure import Figure

from datamodules.pass_rates import Label, Measurement, PassRates
from support.errors import ConfigError
from support.files import atomic_write_text
from support.processes import gathered
from tracking.runs import mlflow_runs, run_folder

#: points per line of the figure; where there are more rollouts, they are averaged
POINTS = 40


class DifficultyLedger(L.Callback):
    """Record the pass rate of every prompt group of every rollout, equal on all processes and across a resume.

    When training ends, the run folder has pass_rates.jsonl with one line per prompt. After every validation the MLflow
    run gets figures/pass_rates.png.

    Args:
        reward: name of the reward that measures success, binary or graded; if None, the first that judges correctness.
        keep: number of latest measurements kept per prompt; None keeps all, about 100 bytes each.
    """

    def __init__(self, reward: str | None = None, keep: int | None = None) -> None:
        if keep is not None and keep < 1:
            raise ConfigError(f"DifficultyLedger: keep is {keep}; it must be 1 or above, or null to keep everything.")
        self.reward = reward
        self.rates = PassRates(keep)
        self.last: list[Measurement] = []  # of the latest rollout, over all processes

    def state_dict(self) -> dict[str, Any]:
        return self.rates.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rates.load_state_dict(state_dict)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        rewards = getattr(pl_module, "rewards", [])
        judges = [r.name for r in rewards if (r.is_correctness if self.reward is None else r.name == self.reward)]
        if not judges:
            needed = "a reward that judges correctness" if self.reward is None else f"a reward named {self.reward!r}"
            raise ConfigError(
                f"DifficultyLedger needs {needed}, but model.rewards of {type(pl_module).__name__} has "
                f"{[r.name for r in rewards]}. Set DifficultyLedger.reward to one of these names."
            )
        self.reward = judges[0]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        rollout, number = pl_module.last_sampled, trainer.fit_loop.epoch_loop.total_batch_idx
        judge = next(reward for reward in pl_module.rewards if reward.name == self.reward)
        rates = judge.unscaled(rollout.rewards[self.reward], rollout).view(len(rollout.rows), -1).nanmean(1).tolist()
        local_measurements = [
            Measurement(str(row["id"]), number, rate, row.get("task"), row.get("level"))
            for row, rate in zip(rollout.rows, rates, strict=True)
            if not math.isnan(rate)  # the reward applies to no completion of this group
        ]
        self.last = [measurement for part in gathered(local_measurements) for measurement in part]
        for measurement in self.last:
            self.rates.add(measurement)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or not len(self.rates):
            return
        path = run_folder(trainer) / "pass_rates.jsonl"
        atomic_write_text(path, self.rates.jsonl())
        for client, run in mlflow_runs(trainer):
            client.log_artifact(run, str(path))
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        for client, run in mlflow_runs(trainer) if len(self.rates) else []:
            client.log_figure(run, pass_rate_figure(self.rates), "figures/pass_rates.png")


def ledger_before(trainer: Any, callback: L.Callback) -> DifficultyLedger:
    """The `DifficultyLedger` that comes before a callback in the trainer's list.

    Raises:
        ConfigError: if no `DifficultyLedger` comes before it.
    """
    earlier = trainer.callbacks[: trainer.callbacks.index(callback)]
    ledger = next((other for other in earlier if isinstance(other, DifficultyLedger)), None)
    if ledger is None:
        raise ConfigError(
            f"{type(callback).__name__} reads measured pass rates, but no DifficultyLedger precedes it; "
            "put callbacks.DifficultyLedger before it in trainer.callbacks."
        )
    return ledger


def pass_rate_figure(rates: PassRates) -> Figure:
    """Mean pass rate over rollouts, one line per task, or one per level where the data have no tasks."""
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    panel = figure.subplots()
    groups: dict[Label, list[tuple[int, float]]] = rates.by("task") or rates.by("level")
    if not groups:
        groups = {"all": sorted(pair for history in rates.history.values() for pair in history)}
    last_rollout = max(rollout for pairs in groups.values() for rollout, _ in pairs)
    bin_width = max(1, math.ceil((last_rollout + 1) / POINTS))
    for name, pairs in groups.items():
        rates_by_bin = defaultdict(list)
        for rollout, rate in pairs:
            rates_by_bin[rollout // bin_width].append(rate)
        means = [sum(bin_rates) / len(bin_rates) for bin_rates in rates_by_bin.values()]
        panel.plot([b * bin_width + (bin_width - 1) / 2 for b in rates_by_bin], means, marker=".", label=str(name))
    panel.set_xlabel("rollout")
    panel.set_ylabel("pass rate of the sampled prompts")
    if len(groups) <= 12:
        panel.legend(fontsize=8)
    return figure
