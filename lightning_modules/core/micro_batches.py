"""Rows that share an optimiser step, and rows that share a forward pass."""

import itertools
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from policies import Policy
from policies.compute import computing
from rollouts import RolloutBatch
from support.processes import maximum


@dataclass
class MicroBatch:
    """Rows of one forward and backward pass.

    Fields:
        rows: indices into the rollout.
        width: length of the longest completion among them, in tokens.
        counted: False on rows that only keep the number of passes equal on all processes.
    """

    rows: Int[Tensor, "some"]
    width: int
    counted: Bool[Tensor, "some"]


def update_slices(batch: RolloutBatch, updates: int) -> list[slice]:
    """Whole prompt groups, in order, in every update the same number, or one more where they do not divide.

    A method may learn from more or fewer groups than were sampled; with fewer than `updates` there are fewer updates.
    """
    prompts, updates = len(batch.rows), min(updates, len(batch.rows))
    edges = [prompts * number // updates * batch.group_size for number in range(updates + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def micro_batches(
    batch: RolloutBatch,
    part: slice,
    budget: int | None,
    equalise: bool = False,
    computed: Bool[Tensor, "rows"] | None = None,
) -> list[MicroBatch]:
    """Passes of at most `budget` tokens; a prompt counts once for all its rows in the pass.

    Groups that fit stay whole, the largest first, each in the first pass with room. A group larger than the budget is
    split, longest rows first, and its prompt is computed again in every piece. A single row above the budget has a
    pass of its own.

    Args:
        part: rows of one optimiser step.
        budget: maximum number of tokens per pass; None for one pass.
        equalise: give every process the same number of passes, at least one, because a missing one would hang the
            others, and because weights without any pass would have no gradient instead of one of zeros; all processes
            must call this then.
        computed: the rows of the batch that are computed; all if None.
    """
    lengths, prompts = batch.lengths.tolist(), batch.prompt_mask.sum(1).tolist()
    is_computed = [True] * len(lengths) if computed is None else computed.tolist()
    needed = 0
    pieces: list[tuple[int, list[int]]] = []
    for start in range(part.start, part.stop, batch.group_size):
        prompt = prompts[start // batch.group_size]
        rows = [row for row in range(start, start + batch.group_size) if is_computed[row]]
        if not rows:
            continue
        rows.sort(key=lambda row: -lengths[row])
        needed += prompt + sum(lengths[row] for row in rows)
        room = None if budget is None else budget - prompt
        pieces += [(prompt + size, piece) for size, piece in _fill([(lengths[row], [row]) for row in rows], room)]
    passes = _fill(sorted(pieces, key=lambda piece: -piece[0]), budget)
    tokens = sum(size for size, _ in passes)
    if tokens > 1.5 * needed:
        warnings.warn(
            f"batch.update_token_budget is {budget}, in which few completions fit beside their prompt: prompts are "
            f"computed repeatedly, {tokens} tokens in total where {needed} would do. If memory allows, raise "
            "batch.update_token_budget.",
            stacklevel=2,
        )
    device = batch.completion_ids.device

    def micro_batch(rows: list[int], counted: bool) -> MicroBatch:
        flags = torch.full((len(rows),), counted, device=device)
        return MicroBatch(torch.tensor(rows, device=device), max(1, max(lengths[row] for row in rows)), flags)

    micros = [micro_batch(sorted(rows), counted=True) for _, rows in passes]
    if equalise and (missing := max(1, int(maximum(len(micros)))) - len(micros)) > 0:
        shortest = min(range(part.start, part.stop), key=lambda row: lengths[row])
        micros += [micro_batch([shortest], counted=False)] * missing
    return micros


def _fill(pieces: list[tuple[int, list[int]]], budget: int | None) -> list[tuple[int, list[int]]]:
    """First fit of (size, rows) into bins of the budget; a piece larger than the budget gets its own bin."""
    bins: list[tuple[int, list[int]]] = []
    for size, rows in pieces:
        place = next((i for i, (used, _) in enumerate(bins) if budget is None or used + size <= budget), None)
        if place is None:
            bins.append((size, list(rows)))
        else:
            bins[place] = (bins[place][0] + size, bins[place][1] + rows)
    return bins


@torch.no_grad()
def batch_logprobs(
    policy: Policy, batch: RolloutBatch, temperature: float, budget: int | None, reference: bool = False
) -> Float[Tensor, "rows time"]:
    """Log-probs of every completion token under the policy or its reference; 0 outside the completion mask.

    Args:
        temperature: divisor of the logits.
        budget: maximum number of tokens per pass; None computes all rows at once.
        reference: use the reference instead of the policy.
    """
    logprobs = torch.zeros(batch.completion_ids.shape, device=policy.device)
    # All processes gather sharded weights together in every pass; a reference's weights stay sharded.
    in_shards = isinstance(policy, FSDPModule) and (reference or not policy.is_whole)
    with computing(policy):
        for micro in micro_batches(batch, slice(0, len(logprobs)), budget, equalise=in_shards):
            groups = batch.prompt_groups(micro.rows)
            if reference:
                logprobs[micro.rows, : micro.width] = policy.reference_logprobs(groups, temperature)
            else:
                logprobs[micro.rows, : micro.width] = policy.logprobs(groups, temperature)[0]
    return logprobs.masked_fill(~batch.completion_mask, 0.0)
