"""Write the trained policy as a folder that transformers loads."""

from pathlib import Path

import lightning as L


class ExportPolicy(L.Callback):
    """At the end of training, save the policy (adapters merged) and its tokenizer.

    Args:
        folder: where to; files of an earlier export there are replaced.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run and not trainer.interrupted:  # type: ignore[attr-defined]
            pl_module.policy.save(Path(self.folder))  # type: ignore[union-attr,operator,arg-type]
            print(f"The policy is in {self.folder}")
