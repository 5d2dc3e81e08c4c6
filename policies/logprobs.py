"""Log-probs of completions under a causal language model."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def token_logprobs(
    logits: Float[Tensor, "rows time vocabulary"], tokens: Int[Tensor, "rows time"], temperature: float = 1.0
) -> Float[Tensor, "rows time"]:
    """log softmax(logits / temperature) at the tokens, in float32 whatever the logits' dtype."""
    logits = logits.float() / temperature
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


@torch.no_grad()
def token_entropies(logits: Float[Tensor, "rows time vocabulary"], temperature: float = 1.0) -> Float[Tensor, "rows time"]:
    """Entropy in nats of the next-token distribution, row by row to bound the memory."""
    return torch.stack([-(p.exp() * p).sum(-1) for p in ((row.float() / temperature).log_softmax(-1) for row in logits)])


def completion_logprobs(
    model: nn.Module,
    prompt_ids: Int[Tensor, "rows prompt_time"],
    prompt_mask: Bool[Tensor, "rows prompt_time"],
    completion_ids: Int[Tensor, "rows time"],
    completion_mask: Bool[Tensor, "rows time"],
    temperature: float = 1.0,
) -> tuple[Float[Tensor, "rows time"], Float[Tensor, "rows time"]]:
    """(log-probs, entropies) of every completion token; values outside the completion mask are arbitrary. Entropies carry no gradient.

    Prompts are padded on the left and completions on the right, so that every completion starts at the same column and
    only its positions go through the output layer.
    """
    ids = torch.cat([prompt_ids, completion_ids], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    width = completion_ids.shape[1]
    logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False, logits_to_keep=width + 1).logits[
        :, :-1
    ]
    return token_logprobs(logits, completion_ids, temperature), token_entropies(logits, temperature)
