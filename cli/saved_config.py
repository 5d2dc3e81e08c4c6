"""The resolved configuration of a run, kept as its file, as an artifact and as parameters in MLflow."""

from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback

from cli.own_configurations import remember_as_own
from support.files import atomic_write_text
from tracking.runs import mlflow_runs, run_folder, settle_run_folder, write_number

#: characters of a parameter's value that MLflow keeps
LONGEST_VALUE = 6000
#: characters of a tag's name that MLflow keeps
LONGEST_NAME = 250


class SaveConfig(SaveConfigCallback):
    """Writes `config_<stage>.yaml` into the run's folder and to MLflow.

    Lightning's own callback needs a logger with a folder.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        settle_run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called once, before training, on the first process."""
        path = run_folder(trainer) / f"config_{getattr(stage, 'value', stage)}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        # A run that is killed here must still be found by --ckpt_path last.
        text = self.parser.dump(self.config, skip_unset=False)
        atomic_write_text(path, text)
        remember_as_own(text)
        if path.stem == "config_fit":
            write_number(path.parent)
        values = flattened(self.config.as_dict() if isinstance(self.config, Namespace) else dict(self.config))
        if "config" in values:  # otherwise a list of objects, which the comparison page of MLflow shows first
            values["config"] = ", ".join(str(path) for path in values["config"] or [])
        for client, run in mlflow_runs(trainer):
            client.log_artifact(run, str(path), "config")
            known = client.get_run(run).data.params
            for key, value in values.items():
                text = str(value)[:LONGEST_VALUE]
                if key not in known:  # the logger would cut values at 250 characters
                    client.log_param(run, key, text)
                elif known[key] != text and key.startswith(("model.", "data.")):
                    # MLflow never changes a parameter; what acts after a resume is a tag of the same name.
                    client.set_tag(run, f"resumed.{key}"[:LONGEST_NAME], text)


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted name; the items of a list of mappings are numbered."""
    if isinstance(config, dict) and config:
        items = list(config.items())
    elif isinstance(config, list) and any(isinstance(item, dict) for item in config):
        items = list(enumerate(config))
    else:
        return {prefix: config}
    return {
        name: leaf
        for key, value in items
        for name, leaf in flattened(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }
