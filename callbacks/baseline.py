"""Validation of the initial policy, before training."""

import lightning as L


class BaselineValidation(L.Callback):
    """Validate once before the first rollout, so that every curve starts at the untrained policy.

    It also runs every reward once, so that a reward that cannot work fails before training. A resumed run skips it.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        resumed = loop.total_batch_idx >= 0
        if resumed or not trainer.enable_validation or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.validating = True
        try:
            loop.val_loop.run()
        finally:
            trainer.training = True
