"""What owns the weights: log-probs of a causal language model's tokens."""

from policies.logprobs import completion_logprobs, token_logprobs

__all__ = ["completion_logprobs", "token_logprobs"]
