"""Which rows share an optimiser step, and which a forward pass."""

import warnings
from dataclasses import dataclass

import lightning as L
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rollouts import RolloutBatch


@dataclass
class MicroBatch:
    """Rows of one forward and backward pass.

    Fields:
        rows: indices into the rollout. width: longest completion among them.
        counted: False on rows that only keep the number of passes equal on all processes.
    """

    rows: Int[Tensor, "some"]
    width: int
    counted: Bool[Tensor, "some"]


def update_slices(batch: RolloutBatch, updates: int) -> list[slice]:
    """Whole prompt groups, in order, the same number in every update."""
    rows = batch.completion_ids.shape[0]
    size = rows // updates
    return [slice(start, start + size) for start in range(0, rows, size)]


def micro_batches(batch: RolloutBatch, part: slice, budget: int | None, trainer: L.Trainer | None) -> list[MicroBatch]:
    """Passes of at most `budget` tokens, a prompt counted once for all its rows in the pass; a single longer row goes alone.

    Groups stay whole where they fit, the largest first into the first pass with room; a group beyond the budget is split, its longest
    rows first, and its prompt computed again in every piece.

    Args:
        part: the rows of one optimiser step.
        trainer: given when every process must make the same number of passes, since a missing backward pass would hang the others.
    """
    lengths = batch.lengths.tolist()
    prompts = batch.prompt_mask.sum(1).tolist()
    pieces: list[tuple[int, list[int]]] = []
    groups = range(part.start, part.stop, batch.group_size)
    for start in groups:
        prompt = prompts[start // batch.group_size]
        rows = sorted(range(start, start + batch.group_size), key=lambda row: -lengths[row])
        for used, piece in _fill([(lengths[row], [row]) for row in rows], None if budget is None else budget - prompt):
            pieces.append((prompt + used, piece))
    passes = _fill(sorted(pieces, key=lambda piece: -piece[0]), budget)
    computed, needed = (
        sum(size for size, _ in passes),
        sum(lengths[part]) + sum(prompts[row // batch.group_size] for row in groups),
    )
    if computed > 1.5 * needed:
        warnings.warn(
            f"batch.update_token_budget is {budget}, in which few completions fit beside their prompt: {computed} tokens are computed for "
            f"{needed} because prompts are computed again and again; raise it if memory allows.",
            stacklevel=2,
        )
    device = batch.completion_ids.device
    made = [
        MicroBatch(
            torch.tensor(sorted(rows), device=device),
            max(1, max(lengths[row] for row in rows)),
            torch.ones(len(rows), dtype=torch.bool, device=device),
        )
        for _, rows in passes
    ]
    if trainer is not None and trainer.world_size > 1:
        most = trainer.strategy.reduce(torch.tensor(float(len(made)), device=device), reduce_op="max")
        filler = MicroBatch(made[-1].rows[-1:], made[-1].width, torch.zeros(1, dtype=torch.bool, device=device))
        made += [filler] * (int(most) - len(made))
    return made


def _fill(pieces: list[tuple[int, list[int]]], budget: int | None) -> list[tuple[int, list[int]]]:
    """First fit of (size, rows) into bins of the budget; what is larger than the budget has a bin of its own."""
    bins: list[tuple[int, list[int]]] = []
    for size, rows in pieces:
        place = next((i for i, (used, _) in enumerate(bins) if budget is None or used + size <= budget), None)
        if place is None:
            bins.append((size, list(rows)))
        else:
            bins[place] = (bins[place][0] + size, bins[place][1] + rows)
    return bins
