"""GPTQ (arXiv 2210.17323): round one column after the other and let the later ones make up for its error.

H = (2/n) sum_t x_t x_t^T,   U = upper Cholesky factor of H^-1,   e_j = (w_j - q_j) / U_jj,   w_k -= e_j U_jk,  k > j
"""

import torch
from jaxtyping import Float
from torch import Tensor

from policies.quantization.grids import Grid, Scales, by_column
from support.errors import ConfigError

#: what is added to the damping, as a fraction of the mean diagonal, whenever the factorisation fails
MORE_DAMPING = 0.0015
#: columns whose errors are passed on to the rest together
BLOCK = 128


def inverse_factor(hessian: Float[Tensor, "n n"], damping: float) -> Float[Tensor, "n n"]:
    """The upper triangular U with H^-1 = U^T U, for H with `damping` times its mean diagonal added.

    Raises:
        ConfigError: the matrix cannot be factorised, as with inputs that are not finite.
    """
    mean = hessian.diagonal().mean()
    for _ in range(50):
        damped = hessian + damping * mean * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
        lower, problem = torch.linalg.cholesky_ex(damped)
        if not problem:
            factor, problem = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not problem:
                upper: Tensor = factor
                return upper
        damping += MORE_DAMPING
    raise ConfigError(
        "GPTQ cannot factorise the second moments of a layer's inputs, which are not finite or nearly singular; use "
        "more calibration sequences (model.calibration.size) or raise the method's damping."
    )


@torch.no_grad()
def gptq(
    weight: Float[Tensor, "rows columns"],
    hessian: Float[Tensor, "columns columns"],
    grid: Grid,
    *,
    scales: Scales | None = None,
    act_order: bool = True,
    damping: float = 0.01,
) -> Float[Tensor, "rows columns"]:
    """The rounded weights, as floats.

    Args:
        hessian: second moments of the inputs; a factor does not matter. Inputs that are always 0 pass nothing on.
        scales: of the groups, fixed before a column is rounded (static groups); of the weights if None.
        act_order: begin with the inputs of the largest second moment.
        damping: fraction of the mean diagonal that is added to the diagonal.
    """
    columns = weight.shape[1]
    groups = grid.grouped(weight.double())
    fixed = grid.scales(groups) if scales is None else Scales(*(part.double() for part in scales))
    scale, zero = by_column(fixed, columns, groups.shape[-1])
    diagonal = hessian.double().diagonal()
    order = diagonal.argsort(descending=True) if act_order else torch.arange(columns, device=weight.device)
    back = order.argsort()
    ordered = hessian.double()[order][:, order].clone()
    ordered.diagonal()[diagonal[order] == 0] = 1.0
    upper = inverse_factor(ordered, damping)
    left, result = weight.double()[:, order].clone(), torch.empty_like(weight, dtype=torch.float64)
    scale, zero = scale[:, order], zero[:, order]
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.zeros_like(left[:, start:end])
        for column in range(start, end):
            value = left[:, column]
            result[:, column] = grid.rounded(value, Scales(scale[:, column], zero[:, column]))
            error = (value - result[:, column]) / upper[column, column]
            left[:, column:end] -= error[:, None] * upper[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return result[:, back].to(weight.dtype)


def output_errors(
    gap: Float[Tensor, "rows columns"], hessian: Float[Tensor, "columns columns"]
) -> Float[Tensor, "rows"]:
    """Squared error of every output over the calibration inputs, up to the factor of `hessian`: gap H gap^T."""
    return ((gap @ hessian.to(gap.dtype)) * gap).sum(1)
