"""Dynamic sampling: replaces groups of equal rewards, which have no gradient (DAPO, arXiv 2503.14476, 3.2).

The further prompts are a function of (seed, rank, rollout), and each process replaces its own groups. A rollout keeps
its size: groups that the budget does not cover remain, with advantages of zero.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from objectives.statistics import group_statistics
from rollouts import RolloutBatch
from support.processes import summed

Rows = list[dict[str, Any]]


def has_signal(returns: Tensor, batch: RolloutBatch) -> Bool[Tensor, "prompts"]:
    """Whether the completions of each prompt have different returns, without those that no reward applies to (NaN)."""
    return group_statistics(returns, batch.groups)[1] > 0


def exactly(missing: int, without_signal: float) -> int:
    """Draw as many further prompts as groups are missing, whatever fraction of the last ones gave no signal."""
    return missing


def _unseen(rows: Iterator[dict[str, Any]], seen: set[Any]) -> Iterator[dict[str, Any]]:
    """The rows with a new id."""
    for row in rows:
        if row.get("id") not in seen:
            seen.add(row.get("id"))
            yield row


def refilled(
    batch: RolloutBatch,
    spare: Iterator[dict[str, Any]],
    budget: int,
    sample: Callable[[Rows], RolloutBatch],
    returns: Callable[[RolloutBatch], Tensor],
    size: Callable[[int, float], int] = exactly,
) -> tuple[RolloutBatch, RolloutBatch, dict[str, float]]:
    """Replace the groups without signal, as far as the budget allows.

    Args:
        batch: a scored rollout.
        spare: rows of further prompts; those of the batch are skipped.
        budget: maximum number of further prompts.
        sample: rows -> their scored rollout.
        returns: the numbers that decide on signal, one per row.
        size: (groups still missing, fraction of the last sampled groups without signal) -> number of prompts to sample
            next. Groups with signal that are not needed are dropped.

    Returns:
        (the batch, everything that was sampled, metrics). `no_signal` and `no_signal_left` are fractions of the groups,
        `extra_prompts` and `extra_tokens` are numbers of additional prompts and tokens, over all processes.
    """
    signal = has_signal(returns(batch), batch)
    without = float((~signal).float().mean())
    metrics = {"no_signal": without}
    missing = torch.nonzero(~signal).flatten().tolist()
    fresh = _unseen(spare, {row.get("id") for row in batch.rows})
    places, parts, used, tokens = list(range(len(batch.rows))), [batch], 0, 0
    while missing and used < budget and (rows := list(islice(fresh, min(size(len(missing), without), budget - used)))):
        part = sample(rows)
        offset = sum(len(p.rows) for p in parts)
        parts.append(part)
        used, tokens = used + len(rows), tokens + int(part.lengths.sum())
        signal = has_signal(returns(part), part)
        without = float((~signal).float().mean())
        for prompt in torch.nonzero(signal).flatten().tolist()[: len(missing)]:
            places[missing.pop(0)] = offset + prompt
    extra_prompts, extra_tokens = summed(torch.tensor([float(used), float(tokens)])).tolist()
    metrics |= {
        "no_signal_left": len(missing) / len(batch.rows),
        "extra_prompts": extra_prompts,
        "extra_tokens": extra_tokens,
    }
    sampled = RolloutBatch.concatenate(parts)
    return sampled.take(places) if used else batch, sampled, metrics
