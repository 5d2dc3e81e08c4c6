"""Write what LoRA trained by itself, for those who have the model already."""

from pathlib import Path
from typing import Any

import lightning as L

from support.errors import ConfigError


class ExportAdapter(L.Callback):
    """At the end of training, save the adapter in peft's format, a few megabytes, and the tokenizer.

    `peft.PeftModel.from_pretrained(model, folder)` puts it on the model that was trained; vLLM and lm-eval take the folder too. `ExportPolicy` writes the
    merged model instead; both may stand side by side.

    Args:
        folder: where to; files of an earlier export there are replaced.

    Raises:
        ConfigError: before training, where there is no adapter.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and pl_module.policy_params.lora is None:
            raise ConfigError(
                "ExportAdapter: all weights are trained, so there is no adapter; set model.policy.lora, or use ExportPolicy."
            )

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run or trainer.interrupted:
            return
        with pl_module.whole_weights():
            if trainer.is_global_zero:
                pl_module.policy.save_adapter(Path(self.folder))
                pl_module.policy.tokenizer.save_pretrained(self.folder)
                print(f"The adapter is in {self.folder}")
