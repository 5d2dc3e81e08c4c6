"""Tiny random models of the causal families of transformers, with weights so large that differences show."""

import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from assets.make_untrained import reasoner_tokenizer

#: longest sequence in tokens
CONTEXT = 64
#: tokens that a layer with a window sees
WINDOW = 16
#: sizes by the names that configurations give them
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "rotary_dim", "global_head_dim"), 8),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "original_max_position_embeddings"), CONTEXT
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size", "time_step_rank", "mamba_dt_rank"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
}
#: settings of dropout and other noise of the training mode
_NOISE = re.compile("drop|pdrop|jitter")


@dataclass(frozen=True)
class Family:
    """One architecture.

    Fields:
        kind: its `model_type` in transformers.
        changes: of its configuration, beside SIZES.
        name: in tables, where a family has several members.
    """

    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return self.name or self.kind


def configuration(family: Family) -> PretrainedConfig:
    """The family's configuration with small sizes."""
    tokenizer = reasoner_tokenizer()
    kind = type(AutoConfig.for_model(family.kind))
    defaults = AutoConfig.for_model(family.kind)
    accepted = set(defaults.to_dict()) | set(inspect.signature(kind.__init__).parameters)
    aliases = set(kind.attribute_map)
    sizes = {name: value for name, value in SIZES.items() if name in accepted - aliases}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    noise = {name: 0.3 for name, value in defaults.to_dict().items() if _NOISE.search(name) and _is_rate(value)}
    return kind(**{"vocab_size": len(tokenizer), **noise, **sizes, **ends, **family.changes})


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def build(family: Family, folder: Path) -> None:
    """Save a random model of the family and the reasoner's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration(family), dtype=torch.float32)
    enlarge(model)
    model.save_pretrained(folder)
    reasoner_tokenizer().save_pretrained(folder)


@torch.no_grad()
def enlarge(model: nn.Module) -> None:
    """Draw matrices with gain about 1, and move everything else away from its first value, persistent buffers too."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim < 2 or any(part in name for part in ("A_log", "dt_bias", "conv1d", "norm")):
            tensor.add_(0.2 * torch.randn_like(tensor))
        else:
            tensor.copy_(torch.randn_like(tensor) * (1.0 if "emb" in name else tensor.shape[-1] ** -0.5))
