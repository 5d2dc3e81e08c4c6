"""Log-probs of completions under a causal language model."""

import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from policies.adapters import without_wrapper
from policies.fused import fused_logprobs
from policies.packing import NO_MASK, PromptGroups

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


@lru_cache
def _options(forward: Callable[..., Any]) -> frozenset[str]:
    """Names of the options of a model's forward, "**" for any."""
    parameters = inspect.signature(forward).parameters.values()
    return frozenset("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters)


def model_logits(
    model: Any,
    ids: Int[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"] | None = None,
    keep: int = 1,
) -> Float[Tensor, "rows keep vocabulary"]:
    """Logits at the last `keep` positions.

    Options that a model does not have (positions, a number of logits) are left out.

    Args:
        mask: False where ids only pad, on either side; None where nothing pads.
    """
    options: dict[str, Any] = {"use_cache": False, "logits_to_keep": keep}
    if mask is not None:
        options["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
        options["attention_mask"] = mask.long()
    names = _options(type(without_wrapper(model)).forward)
    options = {name: value for name, value in options.items() if name in names or "**" in names}
    logits: Tensor = model(input_ids=ids, **options).logits
    return logits[:, -keep:]


def padded_logprobs(
    model: nn.Module, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
) -> LogprobsAndEntropies:
    """(log-probs, entropies) of every completion token by one padded forward.

    Values outside the completion mask are arbitrary. The model only needs a causal forward. Prompts are repeated for
    every row, so that every completion starts at the same column and only its positions go through the output layer.
    """
    return _scored(padded_logits(model, groups), groups, temperature, entropy_gradient)


def padded_logits(model: nn.Module, groups: PromptGroups) -> Float[Tensor, "rows time vocabulary"]:
    """Logits that predict every completion token, by one padded forward."""
    ids = torch.cat([groups.prompt_ids[groups.owner], groups.completion_ids], dim=1)
    mask = torch.cat([groups.prompt_mask[groups.owner], groups.completion_mask], dim=1)
    return model_logits(model, ids, mask, groups.completion_ids.shape[1] + 1)[:, :-1]


def by_length_logprobs(
    model: nn.Module, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
) -> LogprobsAndEntropies:
    """(log-probs, entropies) of every completion token by one forward per length of the prompts.

    For models that do not bear padding on the left, such as recurrent ones: nothing stands before a prompt, and what
    pads behind a completion changes no earlier token.
    """
    results: list[LogprobsAndEntropies] = []
    order = []
    for rows, part, logits in _by_length(model, groups):
        results.append(_scored(logits, part, temperature, entropy_gradient))
        order.append(rows)
    back = torch.cat(order).argsort()
    logprobs, entropies = (torch.cat(parts)[back] for parts in zip(*results, strict=True))
    return logprobs, entropies


def by_length_logits(model: nn.Module, groups: PromptGroups) -> Float[Tensor, "rows time vocabulary"]:
    """Logits that predict every completion token, by one forward per length of the prompts."""
    order, _, logits = zip(*_by_length(model, groups), strict=True)
    return torch.cat(logits)[torch.cat(order).argsort()]


def _by_length(model: nn.Module, groups: PromptGroups) -> Iterator[tuple[Tensor, PromptGroups, Tensor]]:
    """(indices of rows whose prompts have one length, these rows, logits that predict their tokens)."""
    for rows, part, ids in sequences_by_length(groups):
        yield rows, part, model_logits(model, ids, keep=part.completion_ids.shape[1] + 1)[:, :-1]


def sequences_by_length(groups: PromptGroups) -> Iterator[tuple[Tensor, PromptGroups, Int[Tensor, "rows time"]]]:
    """(indices of rows whose prompts have one length, these rows, prompt and completion without padding before)."""
    lengths = groups.prompt_mask.sum(1)[groups.owner]
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        part = groups.rows(rows)
        prompts = part.prompt_ids[part.owner, part.prompt_ids.shape[1] - length :]
        yield rows, part, torch.cat([prompts, part.completion_ids], 1)


def _scored(logits: Tensor, groups: PromptGroups, temperature: float, entropy_gradient: bool) -> LogprobsAndEntropies:
    entropies = token_entropies(logits if entropy_gradient else logits.detach(), temperature)
    return token_logprobs(logits, groups.completion_ids, temperature), entropies


def packed_logprobs(
    model: Any, groups: PromptGroups, temperature: float = 1.0, entropy_gradient: bool = False
) -> LogprobsAndEntropies:
    """(log-probs, entropies) of every completion token by one packed forward; 0 outside the completion mask.

    There is no padding, each prompt is computed once, and no tensor has tokens x vocabulary entries. The model's
    attention must be SHARED_PREFIX, and its output layer a matrix without a bias.
    """
    states, packed = packed_states(model, groups), groups.packed
    weight = model.get_output_embeddings().weight
    logprobs, entropies = (
        torch.zeros(groups.completion_ids.shape, device=states.device).masked_scatter(groups.completion_mask, values)
        for values in fused_logprobs(states, weight, packed.targets, temperature, entropy_gradient)
    )
    return logprobs, entropies


def packed_states(model: Any, groups: PromptGroups) -> Float[Tensor, "tokens size"]:
    """Hidden states that predict the completion tokens, row after row, by one packed forward."""
    packed = groups.packed
    # A mask of four dimensions keeps the model from making one; the attention uses the masks of the buckets.
    mask = torch.ones(NO_MASK, dtype=torch.bool, device=packed.ids.device)
    hidden = model.get_decoder()(
        input_ids=packed.ids, position_ids=packed.positions, attention_mask=mask, use_cache=False, packed=packed
    ).last_hidden_state
    states: Tensor = hidden[0].index_select(0, packed.source)
    return states
