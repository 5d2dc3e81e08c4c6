"""The base class of modules that measure a policy in `main.py test` and train none."""

import json
from typing import Any

import lightning as L

from lightning_modules.core.posttrain_module import PosttrainModule
from lightning_modules.core.saved_weights import check_weights
from support.errors import ConfigError
from support.seen_prompts import SeenPrompts

#: settings of a policy that decide which model a checkpoint's weights belong to, and what it reads
IDENTITY = ("model", "lora", "open_thinking", "chat_template_args")


class MeasuringModule(PosttrainModule):
    """Measures the policy that the settings name, or that of any method's checkpoint (`--ckpt_path`)."""

    measures_any_policy = True  #: --ckpt_path last is the newest run of any method

    def configure_callbacks(self) -> list[L.Callback]:
        """No callbacks; it is Lightning's first call in a run, and so the place to refuse other stages than test."""
        if self.trainer.state.fn != "test":
            raise ConfigError(
                f"{type(self).__name__} measures a policy and does not train one; start it with python main.py test "
                "--config ..., for a trained policy with --ckpt_path."
            )
        return []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the policy out of the checkpoint of any method; a critic, a reference and the optimiser stay behind."""
        self._check_identity(checkpoint)
        self.configure_model()
        if "seen_prompts" in checkpoint:
            self._seen.update(SeenPrompts.from_state_dict(checkpoint["seen_prompts"]))
        if "state_dict" not in checkpoint:  # in shards, which the strategy loads and checks
            return
        expected = self.state_dict()
        kept = {name: weight for name, weight in checkpoint["state_dict"].items() if name in expected}
        if not kept:
            raise ConfigError(
                f"the checkpoint was made by {checkpoint.get('module') or 'another program'} and holds none of the "
                f"weights of {self.policy_params.model}; name a checkpoint of a language model with --ckpt_path."
            )
        check_weights(expected, kept, self._rebuilt_from_config(), self.no_reference)
        checkpoint["state_dict"] = kept

    def _check_identity(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another policy than the settings name, with the settings that fit."""
        saved = (checkpoint.get("hyper_parameters") or {}).get("policy")
        if not isinstance(saved, dict):  # of a module that was built in Python
            return
        wanted = {name: saved[name] for name in IDENTITY if name in saved}
        differing = {name: value for name, value in wanted.items() if plain(getattr(self.policy_params, name)) != value}
        if differing:
            flags = " ".join(f"--model.policy.{name} '{json.dumps(value)}'" for name, value in differing.items())
            raise ConfigError(
                f"the checkpoint is of a run with another policy than these settings. Add: {flags.replace(chr(34), '')}"
            )


def plain(value: Any) -> Any:
    """A part of a policy's settings as plain data."""
    return vars(value) if hasattr(value, "__dict__") else value
