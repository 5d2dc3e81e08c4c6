"""The memory that a model needs, by phase, from its config.json alone: no weights are loaded.

Parameters are counted on the model that transformers builds without storage, so the counts are exact, adapters
included; so are the sizes of caches. The activations that an update keeps for its backward pass are estimated for
Llama-like layers.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from policies import PolicyParams
from policies.adapters import with_adapter
from policies.config_checks import check_config
from policies.fused import TILE
from policies.locate import locate
from policies.realign import add_bottom_adapter
from policies.recurrent import RecurrentForCausalLM
from support.errors import ConfigError


@dataclass
class ModelSize:
    """Number and width of a model's parameters.

    Fields:
        config: transformers' configuration. parameters: number of all, tied ones counted once.
        trained: number of those that are trained, adapters alone under LoRA. width: bytes per number.
        state: bytes that a recurrent model keeps per row, whatever its length; 0 for others.
    """

    config: Any
    parameters: int
    trained: int
    width: int
    state: int = 0

    @classmethod
    def of(cls, params: PolicyParams) -> "ModelSize":
        """Count the parameters of a model.

        Raises:
            ConfigError: for a model whose config.json cannot be read.
        """
        dtype = getattr(torch, params.dtype)
        try:
            place = locate(params.model)
            check_config(place)
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
                recurrent = isinstance(model, RecurrentForCausalLM)
                state = model.model.initial_state(1).nbytes if recurrent else 0
                if params.lora is not None:
                    model = with_adapter(model, params.lora)
                if params.bottom_adapter:
                    add_bottom_adapter(model, params.model)
                    config = model.config
        except ConfigError:
            raise
        except Exception as error:  # the libraries raise many types; all of them mean that no model can be made of it
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"the config.json of {params.model} cannot be read: {reason}. Correct model.policy.model."
            ) from error
        sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
        return cls(config, sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained), dtype.itemsize, state)

    @property
    def head_size(self) -> int:
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)

    @property
    def key_heads(self) -> int:
        return int(getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads)

    def cache_bytes(self, rows: int, tokens: int) -> int:
        """Bytes of the keys and values of `tokens` tokens in each of `rows` rows, or of the rows' recurrent states."""
        layers: int = self.config.num_hidden_layers
        row = self.state or 2 * layers * self.key_heads * self.head_size * tokens * self.width
        return rows * row

    def activation_bytes(self, prompts: int, prompt: int, rows: int, time: int, checkpointing: bool = False) -> int:
        """Bytes that the packed forward pass of an update keeps for its backward pass.

        A layer keeps its input, its normalised input before and after the scale, the same three before the MLP,
        queries, the attended values twice, keys and values, four inner states of the gated MLP, the prompt's keys and
        values once more per completion, and a mask; with checkpointing its input alone, and everything of one layer at
        a time. One tile of probabilities over the vocabulary stays too, if it is the only one.

        Args:
            prompts: number of prompts in the pass, each of `prompt` tokens.
            rows: number of completions in the pass, each of `time` tokens.
            checkpointing: whether the layers recompute their inner states in the backward pass.
        """
        config, tokens = self.config, prompts * prompt + rows * time
        hidden: int = config.hidden_size
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        queries, keys = config.num_attention_heads * self.head_size, self.key_heads * self.head_size
        layer: int = tokens * (6 * hidden + 3 * queries + 2 * keys + 4 * inner) + 2 * rows * prompt * keys
        layer += rows * time * (prompt + time) * (config.num_attention_heads // self.key_heads)
        layers: int = config.num_hidden_layers
        tile: int = 4 * min(tokens * config.vocab_size, TILE)
        return self.width * (layers * tokens * hidden + layer if checkpointing else layers * layer) + tile


def states_of(optimizer: Callable[[Any], torch.optim.Optimizer]) -> int:
    """Numbers that an optimiser keeps per trained weight, found by one step on a small tensor."""
    weight = torch.nn.Parameter(torch.ones(64))
    instance = optimizer([weight])
    weight.grad = torch.ones(64)
    instance.step()
    return sum(value.numel() == 64 for value in instance.state[weight].values() if isinstance(value, torch.Tensor))


def machine_memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not tell."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
