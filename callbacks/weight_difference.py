"""Table of how far training moved each weight tensor."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from policies.adapters import acting_weights
from policies.locate import load_pretrained
from support.files import atomic_write_text
from tracking.runs import mlflow_runs, run_folder


class WeightDifference(L.Callback):
    """At the end of training, compare every weight tensor with the model that training started from.

    Per tensor: |W - W_start| / |W_start| (Frobenius norms), the mean and the largest absolute change. The table is
    weight_difference.json in the run folder and in MLflow. Adapters count as merged. Rows that domain tokens added are
    left out. The model is loaded once more for it, from `model.policy.model`.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        with pl_module.whole_weights():
            if not trainer.is_global_zero:
                return
            policy = pl_module.policy
            start = load_pretrained(
                type(policy.bare), policy.params.model, ("pooler",), dtype=getattr(torch, policy.params.dtype)
            )
            table = list(differences(dict(start.named_parameters()), acting_weights(policy.bare)))
        changed = [row for row in table if row["largest"] > 0]
        path = run_folder(trainer) / "weight_difference.json"
        atomic_write_text(Path(path), json.dumps(table, indent=1))
        for client, run in mlflow_runs(trainer):
            client.log_dict(run, {"tensors": table}, "weight_difference.json")
        farthest = max(table, key=lambda row: row["relative"])
        print(
            f"{len(changed)} of {len(table)} weight tensors changed, {farthest['name']} most, by "
            f"{farthest['relative']:.2%}; all are in {path}"
        )


@torch.no_grad()
def differences(before: dict[str, Tensor], after: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Any]]:
    """One row per tensor that both have: its name, relative change, and mean and largest absolute change."""
    for name, weight in after:
        if name not in before:
            continue
        old = before[name].detach().cpu().float()
        new = weight.detach().cpu().float()[: len(old)] if old.ndim else weight.detach().cpu().float()
        change = new - old
        yield {
            "name": name,
            "relative": float(change.norm() / old.norm().clamp(min=1e-12)),
            "mean": float(change.abs().mean()),
            "largest": float(change.abs().max()),
        }
