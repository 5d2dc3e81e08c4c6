"""Export of the LoRA adapter alone, for users who already have the base model."""

from pathlib import Path
from typing import Any

import lightning as L
from torch.distributed.fsdp import FSDPModule

from support.errors import ConfigError
from tracking.model_card import write_card


class ExportAdapter(L.Callback):
    """At the end of training, save the adapter in peft's format, a few megabytes, the tokenizer and a model card.

    `peft.PeftModel.from_pretrained(model, folder)` loads it onto the base model; vLLM and lm-eval accept the folder
    too. `ExportPolicy` writes the merged model instead; a run may use both.

    Args:
        folder: target folder; files of an earlier export there are replaced.

    Raises:
        ConfigError: before training, if the policy has no adapter, or one that peft could not load.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and pl_module.policy_params.lora is None:
            raise ConfigError(
                "ExportAdapter: the policy has no LoRA adapter to export; set model.policy.lora, or use "
                "callbacks.ExportPolicy."
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not isinstance(pl_module.policy, FSDPModule):
            pl_module.policy.check_adapter_folder()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.fast_dev_run or trainer.interrupted:
            return
        with pl_module.whole_weights():
            if trainer.is_global_zero:
                pl_module.policy.save_adapter(Path(self.folder))
                pl_module.policy.tokenizer.save_pretrained(self.folder)
                pl_module.seen_prompts().save(self.folder)
                write_card(trainer, pl_module, self.folder)
                print(f"The adapter is in {self.folder}")
