"""Rows without signal: rows that cannot change the gradient, which the update therefore does not compute.

A row whose advantages are all 0 has no gradient under most objectives. Each part of an objective declares this itself
by `zero_advantage_has_no_gradient`; a part that does not is taken to have one, and all rows with loss are computed.
"""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

DECLARATION = "zero_advantage_has_no_gradient"


def declares_no_gradient(part: Any, method: str) -> bool:
    """Whether `part` declares that its `method` has no gradient on a row whose advantages are all 0.

    A declaration speaks for the code beside it: a class that defines `method` anew has to repeat it, because the new
    code may add a term that acts at an advantage of 0.

    Args:
        part: a policy loss with its `__call__`, or a module with its `token_loss`.
    """
    if method in vars(part):  # replaced on this one object
        return False
    for cls in type(part).__mro__:
        if DECLARATION in vars(cls):
            return bool(getattr(part, DECLARATION))
        if method in vars(cls):
            return False
    return False


def rows_with_signal(
    mask: Bool[Tensor, "rows time"], advantages: Float[Tensor, "rows time"] | None
) -> Bool[Tensor, "rows"]:
    """The rows that may have a gradient: those with a token that carries loss and an advantage other than 0.

    Args:
        mask: tokens that carry loss.
        advantages: None if an advantage of 0 may have a gradient too.
    """
    return mask.any(1) if advantages is None else (mask & (advantages != 0)).any(1)
