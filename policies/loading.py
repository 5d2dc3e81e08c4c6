"""Loading of a policy's model, with the bottom adapter that its settings ask for."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from policies.locate import load_pretrained
from policies.modes import set_mode
from policies.params import PolicyParams
from policies.realign import add_bottom_adapter, check_identity, has_bottom_adapter


def load_model(params: PolicyParams) -> Any:
    """Load the model, in the mode of updates."""
    model = load_pretrained(AutoModelForCausalLM, params.model, dtype=getattr(torch, params.dtype))
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0  # RWKV would halve weights in place when it changes its mode
    if params.bottom_adapter:
        is_new = not has_bottom_adapter(model)
        add_bottom_adapter(model, params.model)
        if is_new:
            check_identity(model, params.model)
    set_mode(model, training=True, dropout=params.dropout)
    return model
