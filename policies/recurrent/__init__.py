"""Recurrent language models of the project, registered with transformers' auto classes: no code comes with a folder."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from policies.recurrent.model import RecurrentForCausalLM, RecurrentModel
from policies.recurrent.rodimus import RodimusConfig, RodimusForCausalLM, RodimusModel
from policies.recurrent.rwkv6 import RWKV6Config, RWKV6ForCausalLM, RWKV6Model
from policies.recurrent.state import RecurrentState

for _config, _body, _model in (
    (RodimusConfig, RodimusModel, RodimusForCausalLM),
    (RWKV6Config, RWKV6Model, RWKV6ForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _body, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)

__all__ = [
    "RWKV6Config",
    "RWKV6ForCausalLM",
    "RWKV6Model",
    "RecurrentForCausalLM",
    "RecurrentModel",
    "RecurrentState",
    "RodimusConfig",
    "RodimusForCausalLM",
    "RodimusModel",
]
