"""Own callbacks. What a module offers to them is public: its metrics, `last_rollout`, and the settings that may be turned between rollouts."""

import json
from pathlib import Path

import lightning as L


class Diary(L.Callback):
    """A line of JSON for every rollout."""

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
    """Ends training when a validation metric has come far enough."""

    def __init__(self, metric: str = "val/reward", above: float = 0.99) -> None:
        self.metric, self.above = metric, above

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking and float(trainer.callback_metrics.get(self.metric, 0.0)) > self.above:
            trainer.should_stop = True
