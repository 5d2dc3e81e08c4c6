"""Recurrent language models of the project, registered with transformers' auto classes: no code comes with a folder."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from policies.recurrent.model import RecurrentForCausalLM, RecurrentModel
from policies.recurrent.rodimus import RodimusConfig, RodimusForCausalLM, RodimusModel
from policies.recurrent.state import RecurrentState

AutoConfig.register(RodimusConfig.model_type, RodimusConfig, exist_ok=True)
AutoModel.register(RodimusConfig, RodimusModel, exist_ok=True)
AutoModelForCausalLM.register(RodimusConfig, RodimusForCausalLM, exist_ok=True)

__all__ = [
    "RecurrentForCausalLM",
    "RecurrentModel",
    "RecurrentState",
    "RodimusConfig",
    "RodimusForCausalLM",
    "RodimusModel",
]
