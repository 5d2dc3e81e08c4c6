"""Models and their weights: loading, LoRA, references, per-token log-probs, scorers."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from policies.classifier import Classifier
from policies.embedder import Embedder
from policies.encoder import TextEncoder
from policies.logprobs import packed_logprobs, padded_logprobs, token_logprobs
from policies.packing import PromptGroups
from policies.params import LoRA, PolicyParams
from policies.policy import Policy
from policies.prompt_encoding import Prompt, encode_prompt
from policies.recurrent import RodimusConfig, RodimusForCausalLM, RWKV6Config, RWKV6ForCausalLM
from policies.reply_encoding import encode_reply
from policies.scorer import Scorer, load_scorer
from policies.tokenizer import load_tokenizer
from policies.value_model import ValueModel

__all__ = [
    "Classifier",
    "Embedder",
    "LoRA",
    "Policy",
    "PolicyParams",
    "Prompt",
    "PromptGroups",
    "RWKV6Config",
    "RWKV6ForCausalLM",
    "RodimusConfig",
    "RodimusForCausalLM",
    "Scorer",
    "TextEncoder",
    "ValueModel",
    "encode_prompt",
    "encode_reply",
    "load_scorer",
    "load_tokenizer",
    "packed_logprobs",
    "padded_logprobs",
    "token_logprobs",
]
