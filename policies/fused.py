"""Log-probs from hidden states without ever holding tokens x vocabulary numbers."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE = 2**23  # logits held at once: 32 MiB in float32


class _FusedLogprobs(torch.autograd.Function):
    """Runs over the vocabulary in tiles, with a running maximum and sum; the backward pass computes each tile's logits again.

    With p = softmax(z), z = W h / T and upstream gradient g: dL/dz = g (onehot - p), so dL/dh and the tile's rows of dL/dW are one
    matrix product each, and every row of dL/dW is written once.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else weight.dtype
        tokens, vocabulary = len(targets), len(weight)
        ctx.tile = min(vocabulary, max(64, TILE // max(1, tokens)))
        ctx.temperature, ctx.dtype = temperature, dtype
        states = hidden.to(dtype)
        top = torch.full((tokens,), -torch.inf, device=hidden.device)
        total, weighted, chosen = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        for start in range(0, vocabulary, ctx.tile):
            logits = (states @ weight[start : start + ctx.tile].to(dtype).T).float().div_(temperature)
            higher = torch.maximum(top, logits.amax(1))
            here = targets - start
            inside = (here >= 0) & (here < logits.shape[1])
            chosen = torch.where(inside, logits.gather(1, here.clamp(0, logits.shape[1] - 1)[:, None])[:, 0], chosen)
            exponentials = (logits - higher[:, None]).exp_()
            shrink = (top - higher).exp()
            total = total * shrink + exponentials.sum(1)
            weighted = weighted * shrink + torch.linalg.vecdot(exponentials, logits)
            top = higher
        normaliser = top + total.log()
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        entropies = normaliser - weighted / total
        ctx.mark_non_differentiable(entropies)
        return chosen - normaliser, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        states = hidden.to(ctx.dtype)
        by_token = gradients[0].float() / ctx.temperature
        to_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(weight), ctx.tile):
            tile = weight[start : start + ctx.tile].to(ctx.dtype)
            logits = (states @ tile.T).float().div_(ctx.temperature)
            slopes = (logits.sub_(normaliser[:, None])).exp_().mul_(-by_token[:, None])
            here = targets - start
            inside = (here >= 0) & (here < logits.shape[1])
            slopes.scatter_add_(1, here.clamp(0, logits.shape[1] - 1)[:, None], torch.where(inside, by_token, 0.0)[:, None])
            slopes = slopes.to(ctx.dtype)
            to_hidden += slopes @ tile
            if to_weight is not None:
                to_weight[start : start + ctx.tile] = slopes.T @ states
        return to_hidden.to(hidden.dtype), to_weight, None, None


def fused_logprobs(
    hidden: Float[Tensor, "tokens size"], weight: Float[Tensor, "vocabulary size"], targets: Int[Tensor, "tokens"], temperature: float = 1.0
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """(log softmax(W h / temperature) at the targets, entropies in nats), both float32. Entropies carry no gradient.

    Memory beyond the gradients: a fixed number of logits, whatever the vocabulary.
    """
    return _FusedLogprobs.apply(hidden, weight, targets, temperature)
