"""Export of the trained model as a folder: a policy that transformers loads, or a reward or cost model."""

import math
from pathlib import Path
from typing import Any, Literal

import lightning as L

from support.errors import ConfigError
from tracking.model_card import write_card
from tracking.run_records import register


class ExportPolicy(L.Callback):
    """At the end of training, save the weights (adapters merged), the tokenizer and a model card.

    With `monitor` it saves them after every validation of the training that is better than all before, so that the
    folder holds the best validated weights; the validation before the first step does not count.

    Args:
        folder: target folder; files of an earlier export there are replaced.
        register: whether to register a copy as the next version of a model in MLflow, if MLflow tracks the run.
        monitor: metric of the validation that decides, such as val/pass@1; None saves the last weights.
        mode: whether the metric's maximum or its minimum is the best.
    """

    def __init__(
        self, folder: str, register: bool = True, monitor: str | None = None, mode: Literal["max", "min"] = "max"
    ) -> None:
        self.folder, self.register, self.monitor, self.mode = folder, register, monitor, mode
        self.best: float | None = None
        self.best_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {} if self.monitor is None else {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.monitor is not None and state_dict:
            self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor is not None and not trainer.enable_validation:
            raise ConfigError(
                f"ExportPolicy: monitor is {self.monitor!r}, but the run has no validation; set "
                "trainer.limit_val_batches above 0, or monitor to null to save the last weights."
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ConfigError(
                f"ExportPolicy: monitor is {self.monitor!r}, but the validation logged "
                f"{sorted(name for name in trainer.callback_metrics if name.startswith('val/'))}; set monitor to one "
                "of these."
            )
        value = float(trainer.callback_metrics[self.monitor])
        if trainer.global_step == 0 or math.isnan(value) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.best is None or (value > self.best if self.mode == "max" else value < self.best):
            self.best, self.best_step = value, trainer.global_step
            self._export(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        if self.best is None:
            self._export(trainer, pl_module)
        if trainer.is_global_zero:
            which = "" if self.best is None else f" ({self.monitor} {self.best:.4g} after step {self.best_step})"
            print(f"The trained model is in {self.folder}{which}")
            if self.register:
                register(trainer, Path(self.folder))

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with pl_module.whole_weights():  # type: ignore[operator]
            if trainer.is_global_zero:
                pl_module.export(Path(self.folder))  # type: ignore[operator]
                write_card(trainer, pl_module, self.folder)
