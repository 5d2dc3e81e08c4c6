"""Log-probs and entropies from hidden states, without a tensor of tokens x vocabulary entries."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE = 2**22  # logits held at once: 16 MiB in float32


class _FusedLogprobs(torch.autograd.Function):
    """Log-probs and entropies over the vocabulary in tiles, with a running maximum and sum.

    The backward pass computes each tile's logits again. With p = softmax(z), z = W h / T and upstream gradient g:
    dL/dz = g (onehot - p), so dL/dh and the tile's rows of dL/dW are one matrix product each, and every row of dL/dW is
    written once. The entropy H = -sum p log p adds -g_H p (log p + H) to dL/dz.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        entropy_gradient: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        tokens, vocabulary = len(targets), len(weight)
        keep = tokens * vocabulary <= TILE  # a single tile is kept for the backward pass
        ctx.tile = vocabulary if keep else min(vocabulary, max(64, TILE // tokens))
        ctx.temperature, ctx.dtype = temperature, dtype
        states = hidden.to(dtype)
        top = total = weighted = chosen = torch.zeros(tokens, device=hidden.device)
        for start in range(0, vocabulary, ctx.tile):
            logits = (states @ weight[start : start + ctx.tile].to(dtype).T).float().div_(temperature)
            # Sums of exp(z - top) and of exp(z - top) (z - top); a new maximum rescales the sums so far.
            higher = torch.maximum(top, logits.amax(1)) if start else logits.amax(1)
            here = targets - start
            inside = (here >= 0) & (here < logits.shape[1])
            chosen = torch.where(inside, logits.gather(1, here.clamp(0, logits.shape[1] - 1)[:, None])[:, 0], chosen)
            shifted = logits.sub_(higher[:, None])
            exponentials = shifted.exp()
            shrink = (top - higher).exp() if start else total
            weighted = torch.linalg.vecdot(exponentials, shifted) + shrink * (weighted + (top - higher) * total)
            total = exponentials.sum(1) + shrink * total
            top = higher
        normaliser = top + total.log()
        kept = exponentials.div_(total[:, None]) if keep else None
        entropies = total.log() - weighted / total
        ctx.save_for_backward(hidden, weight, targets, normaliser, kept, entropies if entropy_gradient else None)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return chosen - normaliser, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, targets, normaliser, kept, entropies = ctx.saved_tensors
        states = hidden.to(ctx.dtype)
        by_token = gradients[0].float() / ctx.temperature
        by_entropy = None if entropies is None else gradients[1].float() / ctx.temperature
        to_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        to_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(weight), ctx.tile):
            tile = weight[start : start + ctx.tile].to(ctx.dtype)
            if kept is None:
                p = (states @ tile.T).float().div_(ctx.temperature).sub_(normaliser[:, None]).exp_()
            else:
                p = kept
            if by_entropy is None:
                slopes = p * -by_token[:, None] if p is kept else p.mul_(-by_token[:, None])
            else:
                slopes = torch.addcmul(
                    -by_token[:, None] * p, -by_entropy[:, None], torch.xlogy(p, p) + p * entropies[:, None]
                )
            here = targets - start
            inside = (here >= 0) & (here < slopes.shape[1])
            slopes.scatter_add_(
                1, here.clamp(0, slopes.shape[1] - 1)[:, None], torch.where(inside, by_token, 0.0)[:, None]
            )
            slopes = slopes.to(ctx.dtype)
            to_hidden += slopes @ tile
            if to_weight is not None:
                to_weight[start : start + ctx.tile] = slopes.T @ states
        return to_hidden.to(hidden.dtype), to_weight, None, None, None, None


def fused_logprobs(
    hidden: Float[Tensor, "tokens size"],
    weight: Float[Tensor, "vocabulary size"],
    targets: Int[Tensor, "tokens"],
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """(log softmax(W h / temperature) at the targets, entropies in nats), both float32.

    Entropies carry a gradient only with `entropy_gradient`. Besides the gradients, memory holds a fixed number of
    logits, independent of the vocabulary's size.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):  # no sum over the vocabulary may be rounded
        apply: Callable[..., tuple[Tensor, Tensor]] = _FusedLogprobs.apply
        return apply(hidden, weight, targets, temperature, entropy_gradient, dtype)
