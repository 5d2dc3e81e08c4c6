"""Silent failures: training goes on, curves are drawn, and nothing is learned."""

import math
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from callbacks.findings import IN_A_ROW, WHILE_TRAINING, Seen
from callbacks.findings_at_start import AT_START
from callbacks.findings_classes import ON_CLASSES, READ_OF_CLASSES
from callbacks.findings_preference import ON_PREFERENCES, READ, WINDOW, Steps
from callbacks.findings_vectors import ON_VECTORS, READ_OF_VECTORS
from support.processes import gathered
from tracking.runs import mlflow_runs

#: of modules that learn from given data: the metrics that tell their kind, and the checks of their steps
ON_STEPS = ((READ, ON_PREFERENCES), (READ_OF_CLASSES, ON_CLASSES), (READ_OF_VECTORS, ON_VECTORS))
#: tensors that are watched, and how many weights of each
TENSORS, WEIGHTS = 8, 4096


class Doctor(L.Callback):
    """Runs the checks of callbacks/findings*.py on the data and the rewards at the start, and on every rollout.

    It reports each finding once per run: a paragraph with the measured figure and the setting to change, and the tag
    `doctor.<finding>` of the MLflow run. It never stops a run and draws no random numbers of the run's. On-policy
    modules, preference tuning, classifiers and embedders only.

    Args:
        ignore: names of findings that are meant to be so.
    """

    def __init__(self, ignore: list[str] | None = None) -> None:
        self.ignore = set(ignore or [])
        self.said: dict[str, str] = {}  # paragraphs by finding
        self.seen: list[Seen] = []
        self.steps: Steps = []  # of modules that learn from given data
        self.watched: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"said": self.said, "seen": [asdict(one) for one in self.seen], "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.said, self.seen = dict(state_dict["said"]), [Seen(**one) for one in state_dict["seen"]]
        self.steps = list(state_dict.get("steps", []))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not hasattr(pl_module, "last_rollout"):
            return
        self.watched = watched(pl_module)
        data = getattr(trainer, "datamodule", None)
        for check in AT_START if hasattr(data, "rows") and not trainer.fast_dev_run else ():
            self._say(trainer, check.__name__, check(pl_module, data))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for names, findings in ON_STEPS:
            if all(f"train/{name}" in trainer.callback_metrics for name in names):
                self.steps.append({name: float(trainer.callback_metrics[f"train/{name}"]) for name in names})
                self.steps = [*self.steps[:WINDOW], *self.steps[WINDOW:][-WINDOW:]]
                for finding in findings:
                    self._say(trainer, finding.__name__, finding(pl_module, self.steps))
        if getattr(pl_module, "last_rollout", None) is None:
            return
        one = Seen.together(gathered(Seen.of(pl_module)))
        now = watched(pl_module)
        one.moved, one.changed = change(self.watched, now)
        self.watched = now
        one.learning_rate = pl_module.optimizers().param_groups[0]["lr"]  # the policy's; a critic's come after it
        one.entropy, one.kl, one.grad_norm, one.gap, one.explained = (
            float(trainer.callback_metrics.get(f"train/{name}", math.nan))
            for name in ("entropy", "kl", "grad_norm", "behaviour_gap", "explained_variance")
        )
        # The first ones, from which falls are measured, and as many of the latest as any check looks at.
        self.seen = [*self.seen[:IN_A_ROW], *self.seen[IN_A_ROW:][-4 * IN_A_ROW :], one]
        for check in WHILE_TRAINING:
            self._say(trainer, check.__name__, check(pl_module, self.seen))

    def _say(self, trainer: L.Trainer, name: str, paragraph: str | None) -> None:
        if paragraph is None or name in self.said or name in self.ignore:
            return
        self.said[name] = paragraph
        if trainer.is_global_zero:
            print(f"doctor ({name}): {paragraph}", flush=True)
        for client, run in mlflow_runs(trainer):
            client.set_tag(run, f"doctor.{name}", paragraph)


def watched(module: Any) -> list[Tensor]:
    """Copies of the first weights of some trained tensors, those of this process where weights are in shards."""
    trained = [p for p in module.policy.model.parameters() if p.requires_grad]
    some = trained[:: len(trained) // TENSORS | 1]  # an odd stride, to meet both halves of adapters
    local = [p.to_local().detach() if isinstance(p, DTensor) else p.detach() for p in some]
    return [p.flatten()[:WEIGHTS].clone() for p in local]


def change(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """(size of the change over the size of the weights, largest share of a tensor's weights that changed).

    Tensors that are all zero, as half of an adapter is at first, have no size to be compared with.
    """
    pairs = [(old.float(), new.float()) for old, new in zip(before, after, strict=True) if bool(old.any())]
    if not pairs:
        return math.nan, math.nan
    size = torch.stack([old.norm() for old, _ in pairs]).norm()
    moved = torch.stack([(new - old).norm() for old, new in pairs]).norm()
    shares = [float((new != old).float().mean()) for old, new in pairs]
    return float(moved / size), max(shares)
