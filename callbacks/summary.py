"""Summary printed at the end of a run: what was trained, first and last validation, where the files are, next step."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger

from tracking.runs import run_folder

#: tracking store that `mlflow ui` reads by default
UI_DEFAULT = "sqlite:///mlflow.db"
#: metric -> (label in the summary, decimal places)
SHOWN = {
    "val/pass@1": ("pass@1", 3),
    "val/reward": ("reward", 3),
    "val/cost": ("cost", 3),
    "val/accuracy": ("accuracy", 3),
    "val/accuracy@0": ("triplet accuracy", 3),
    "val/recall@1": ("recall@1", 3),
    "val/loss": ("loss", 3),
    "val/length": ("length in tokens", 1),
    "val/thinking_rate": ("thinking rate", 3),
    "val/truncated": ("cut off", 3),
}


class RunSummary(L.Callback):
    """Print the first and last validation of a run when it ends, across resumes, and the paths of all its files."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        #: rollouts (or steps) before the first and before the last validation; empty before any
        self.validated_at: list[int] = []
        self.began = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "validated_at": self.validated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.last = dict(state_dict["first"]), dict(state_dict["last"])
        self.validated_at = list(state_dict.get("validated_at", []))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        metrics = {name: float(trainer.callback_metrics[name]) for name in SHOWN if name in trainer.callback_metrics}
        self.first, self.last = self.first or metrics, metrics
        self.validated_at = [*self.validated_at[:1], self._finished(trainer)]

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            print("\n" + "\n".join(self.lines(trainer, pl_module)), flush=True)

    def lines(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
        """Lines of the summary of a finished run."""
        on_policy = hasattr(pl_module, "last_rollout")
        count, unit = self._finished(trainer), "rollouts" if on_policy else "steps"
        headline = f"{type(pl_module).__name__}: {count} {unit}"
        if tokens := getattr(pl_module, "generated_tokens", 0):
            headline += f", {tokens:,} generated tokens"
        lines = [f"{headline}, {(time.monotonic() - self.began) / 60:.1f} minutes"]
        validated_twice = len(set(self.validated_at)) == 2
        for name, (label, digits) in SHOWN.items():
            if name in self.last:
                before = f"{self.first[name]:.{digits}f} -> " if validated_twice and name in self.first else ""
                lines.append(f"  {label:<17} {before}{self.last[name]:.{digits}f}")
        if self.validated_at and self.validated_at[-1] < count:
            lines.append(f"  (last validated after {self.validated_at[-1]} of {count} {unit})")
        folder = run_folder(trainer)
        if folder.is_dir():
            lines += [f"Files of this run: {folder}", *(f"  {text}" for text in self._files(folder))]
        for logger in trainer.loggers:
            if isinstance(logger, MLFlowLogger):
                lines.append(
                    f"Curves, configuration and completions: {self._ui(str(logger._tracking_uri))}, experiment "
                    f"{logger._experiment_name!r}, run {logger._run_name!r}"
                )
        if checkpoints := sorted(folder.glob("checkpoints/rollout_*.ckpt")):
            newest = shlex.quote(str(checkpoints[-1]))
            installed = Path(sys.argv[0]).stem == "lightning-posttrain"
            command = "lightning-posttrain" if installed else "python main.py"
            lines.append(f"Next: `{command} predict --ckpt_path {newest}` writes completions of the held-out prompts")
        return lines

    @staticmethod
    def _finished(trainer: L.Trainer) -> int:
        """Rollouts (or steps) that are finished, resumed ones included."""
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1

    @staticmethod
    def _ui(uri: str) -> str:
        """The address of a tracking server, or the command that opens a local store."""
        if uri.startswith("http"):
            return uri
        return "`mlflow ui`" if uri == UI_DEFAULT else f"`mlflow ui --backend-store-uri {uri}`"

    @staticmethod
    def _files(folder: Path) -> list[str]:
        """The contents of a run folder: the latest checkpoint first, then everything else by name."""
        checkpoints = sorted(folder.glob("checkpoints/rollout_*.ckpt"))
        checkpoint_line = [f"checkpoints/{checkpoints[-1].name}, {len(checkpoints)} kept"] if checkpoints else []
        others = sorted(path for path in folder.iterdir() if path.name != "checkpoints" and path.name[0] != ".")
        return checkpoint_line + [f"{path.name}/" if path.is_dir() else path.name for path in others]
