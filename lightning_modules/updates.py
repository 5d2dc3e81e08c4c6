"""Which rows share an optimiser step, and which a forward pass."""

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
    """Rows of similar length together, each pass at most `budget` tokens with its padding (a single longer row goes alone).

    Args:
        part: the rows of one optimiser step.
        trainer: given when every process must make the same number of passes, since a missing backward pass would hang the others.
    """
    lengths = batch.lengths[part]
    order = torch.argsort(lengths, descending=True, stable=True)
    prompts = batch.prompt_mask.sum(1)[torch.arange(part.start, part.stop, device=order.device) // batch.group_size]
    spans, start = [], 0
    while start < len(order):
        stop = len(order)
        if budget is not None:
            stop, widest, width = start + 1, int(prompts[order[start]]), int(lengths[order[start]])
            while stop < len(order):
                widest = max(widest, int(prompts[order[stop]]))
                if (stop + 1 - start) * (widest + width) > budget:
                    break
                stop += 1
        spans.append((start, stop))
        start = stop
    device = order.device
    made = [
        MicroBatch(order[i:j] + part.start, max(1, int(lengths[order[i]])), torch.ones(j - i, dtype=torch.bool, device=device))
        for i, j in spans
    ]
    if trainer is not None and trainer.world_size > 1:
        most = trainer.strategy.reduce(torch.tensor(float(len(made)), device=device), reduce_op="max")
        filler = MicroBatch(made[-1].rows[-1:], made[-1].width, torch.zeros(1, dtype=torch.bool, device=device))
        made += [filler] * (int(most) - len(made))
    return made
