"""Losses of scalar scores on preference pairs (HC-RLHF, arXiv 2506.08266; safe-RLHF, arXiv 2310.12773)."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def reward_loss(
    preferred: Float[Tensor, "pairs"], other: Float[Tensor, "pairs"], regularisation: float = 1e-3
) -> Float[Tensor, ""]:
    """Bradley-Terry: mean of -log sigma(r_w - r_l), plus regularisation * mean(r^2) over both."""
    return -F.logsigmoid(preferred - other).mean() + regularisation * _mean_square(preferred, other)


def order_accuracy(higher: Float[Tensor, "pairs"], lower: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """1 for a pair whose scores are in the right order, 0 for the wrong order, 1/2 for a tie.

    A tie counts as a coin toss, as in the area under a ROC curve: a model that gives every response one score, such as
    an untrained one, has an accuracy of 0.5, not 0.
    """
    return (higher > lower).to(higher.dtype) + 0.5 * (higher == lower).to(higher.dtype)


def pairwise_cost_loss(
    unsafer: Float[Tensor, "pairs"], safer: Float[Tensor, "pairs"], regularisation: float = 1e-3
) -> Float[Tensor, ""]:
    """mean of -log sigma(c_unsafer - c_safer), plus regularisation. The zero of the scale stays arbitrary."""
    return -F.logsigmoid(unsafer - safer).mean() + regularisation * _mean_square(unsafer, safer)


def signed_cost_loss(
    unsafer: Float[Tensor, "pairs"],
    safer: Float[Tensor, "pairs"],
    unsafer_is_unsafe: Bool[Tensor, "pairs"],
    safer_is_unsafe: Bool[Tensor, "pairs"],
    regularisation: float = 1e-3,
) -> Float[Tensor, ""]:
    """The pairwise loss plus -log sigma(sign * c) of each response, sign +1 if it is labelled unsafe and -1 if safe.

    This ties zero to the border between safe and unsafe (safe-RLHF, eq. 6): cost > 0 means unsafe.
    """
    signs = -F.logsigmoid(_sign(unsafer_is_unsafe) * unsafer) - F.logsigmoid(_sign(safer_is_unsafe) * safer)
    return pairwise_cost_loss(unsafer, safer, regularisation) + signs.mean()


def _sign(is_unsafe: Tensor) -> Tensor:
    return is_unsafe.float() * 2 - 1


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return 0.5 * ((a**2).mean() + (b**2).mean())
