"""What owns the weights: loading, LoRA, references, per-token log-probs."""

from policies.logprobs import completion_logprobs, token_logprobs
from policies.policy import LoRA, Policy, PolicyParams, Prompt, encode_prompt, load_tokenizer
from policies.scorer import Scorer, load_scorer

__all__ = [
    "LoRA",
    "Policy",
    "PolicyParams",
    "Prompt",
    "Scorer",
    "completion_logprobs",
    "encode_prompt",
    "load_scorer",
    "load_tokenizer",
    "token_logprobs",
]
