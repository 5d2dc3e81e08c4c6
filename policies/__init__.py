"""What owns the weights: loading, LoRA, references, per-token log-probs."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from policies.logprobs import packed_logprobs, padded_logprobs, token_logprobs
from policies.packing import PromptGroups
from policies.policy import LoRA, Policy, PolicyParams, load_tokenizer
from policies.prompt_encoding import Prompt, encode_prompt
from policies.scorer import Scorer, load_scorer

__all__ = [
    "LoRA",
    "Policy",
    "PolicyParams",
    "Prompt",
    "PromptGroups",
    "Scorer",
    "encode_prompt",
    "load_scorer",
    "load_tokenizer",
    "packed_logprobs",
    "padded_logprobs",
    "token_logprobs",
]
