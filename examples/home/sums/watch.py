"""The project's own callbacks. They use public attributes of a module: its metrics, `last_rollout`, and the settings
that may change between rollouts."""

import json
from pathlib import Path

import lightning as L


class Diary(L.Callback):
    """Append one line of JSON per rollout to a file."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rollout = pl_module.last_rollout
        line = {
            "rollout": trainer.global_step,
            "reward": float(trainer.callback_metrics["train/reward"]),
            "example": f"{rollout.rows[0]['prompt']} {rollout.completions[0]}",
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class StopWhenSolved(L.Callback):
    """End training when a validation metric exceeds a threshold."""

    def __init__(self, metric: str = "val/reward", above: float = 0.99) -> None:
        self.metric, self.above = metric, above

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking and float(trainer.callback_metrics.get(self.metric, 0.0)) > self.above:
            trainer.should_stop = True
