"""A line of training progress: reward, length, KL, tokens per second."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

SHORT = {
    "train/reward": "reward",
    "train/length": "length",
    "train/kl": "kl",
    "train/cost": "cost",
    "train/lambda": "lambda",
    "train/loss": "loss",
    "perf/rollout_tokens_per_s": "tok/s",
    "val/pass@1": "val pass@1",
    "val/loss": "val loss",
}


class RolloutProgress(TQDMProgressBar):
    """A progress bar on a terminal; otherwise, where a bar would fill a log with fragments, one line every n rollouts.

    Args:
        every_n_rollouts: rollouts between two lines where the output is not a terminal.
    """

    def __init__(self, every_n_rollouts: int = 10) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else 0)
        self.every_n_rollouts = every_n_rollouts
        self.plain = not sys.stderr.isatty()
        self.validated = 0  # number of rollouts before the last validation

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = trainer.progress_bar_metrics
        texts = {short: f"{float(metrics[name]):.3g}" for name, short in SHORT.items() if name in metrics}
        return {
            short: f"{text} (at {self.validated})" if short.startswith("val ") else text
            for short, text in texts.items()
        }

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.validated = trainer.fit_loop.epoch_loop.total_batch_idx + 1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if self.plain and trainer.is_global_zero and (done % self.every_n_rollouts == 0 or done == 1):
            shown = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, pl_module).items())
            print(f"{'rollout' if hasattr(pl_module, 'last_rollout') else 'step'} {done}: {shown}", flush=True)
