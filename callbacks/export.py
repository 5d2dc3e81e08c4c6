"""Export of the trained model as a folder: a policy that transformers loads, or a reward or cost model."""

from pathlib import Path

import lightning as L

from tracking.run_records import register


class ExportPolicy(L.Callback):
    """At the end of training, save the weights (adapters merged) and the tokenizer.

    Args:
        folder: target folder; files of an earlier export there are replaced.
        register: whether to register a copy as the next version of a model in MLflow, if MLflow tracks the run.
    """

    def __init__(self, folder: str, register: bool = True) -> None:
        self.folder, self.register = folder, register

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        with pl_module.whole_weights():  # type: ignore[operator]
            if trainer.is_global_zero:
                pl_module.export(Path(self.folder))  # type: ignore[operator]
                print(f"The trained model is in {self.folder}")
                if self.register:
                    register(trainer, Path(self.folder))
