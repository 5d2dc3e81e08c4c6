"""Log-probs of completions under a causal language model."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policies.fused import fused_logprobs
from policies.packing import PromptGroups

LogprobsAndEntropies = tuple[Float[Tensor, "rows time"], Float[Tensor, "rows time"]]


def token_logprobs(
    logits: Float[Tensor, "rows time vocabulary"], tokens: Int[Tensor, "rows time"], temperature: float = 1.0
) -> Float[Tensor, "rows time"]:
    """log softmax(logits / temperature) at the tokens, in float32 for logits of any dtype."""
    logits = logits.float() / temperature
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_entropies(
    logits: Float[Tensor, "rows time vocabulary"], temperature: float = 1.0
) -> Float[Tensor, "rows time"]:
    """Entropy in nats of the next-token distribution; row by row, to bound the memory where there is no gradient."""
    return torch.stack(
        [-(p.exp() * p).sum(-1) for p in ((row.float() / temperature).log_softmax(-1) for row in logits)]
    )


def padded_logprobs(
    model: nn.Module, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
) -> LogprobsAndEntropies:
    """(log-probs, entropies) of every completion token by one padded forward.

    Values outside the completion mask are arbitrary. The model only needs a causal forward. Prompts are repeated for
    every row, so that every completion starts at the same column and only its positions go through the output layer.
    """
    ids = torch.cat([groups.prompt_ids[groups.owner], groups.completion_ids], dim=1)
    mask = torch.cat([groups.prompt_mask[groups.owner], groups.completion_mask], dim=1)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    width = groups.completion_ids.shape[1]
    logits = model(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False, logits_to_keep=width + 1
    ).logits
    logits = logits[:, :-1]
    entropies = token_entropies(logits if entropy_gradient else logits.detach(), temperature)
    return token_logprobs(logits, groups.completion_ids, temperature), entropies


def packed_logprobs(
    model: Any, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
) -> LogprobsAndEntropies:
    """(log-probs, entropies) of every completion token by one packed forward; 0 outside the completion mask.

    There is no padding, each prompt is computed once, and no tensor has tokens x vocabulary entries. The model's
    attention must be SHARED_PREFIX, and its output layer a matrix without a bias.
    """
    packed = groups.packed
    # A mask of four dimensions keeps the model from making one; the attention uses the masks of the buckets.
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.ids.device)
    hidden = model.get_decoder()(
        input_ids=packed.ids, position_ids=packed.positions, attention_mask=mask, use_cache=False, packed=packed
    ).last_hidden_state
    states = hidden[0].index_select(0, packed.source)
    weight = model.get_output_embeddings().weight
    logprobs, entropies = (
        torch.zeros(groups.completion_ids.shape, device=states.device).masked_scatter(groups.completion_mask, values)
        for values in fused_logprobs(states, weight, packed.targets, temperature, entropy_gradient)
    )
    return logprobs, entropies
