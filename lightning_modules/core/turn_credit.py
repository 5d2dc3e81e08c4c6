"""Credit by turn: the tokens of a turn learn from the rewards of their turn alone.

A turn takes the place of a completion: the baseline of the k-th turn is that of the k-th turns of the same prompt, and
turns of different numbers are never normalised together.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from objectives import Advantage
from rewards import Reward, TurnRewards
from rollouts import RolloutBatch, Turns


def turn_returns(
    batch: RolloutBatch, returns: Float[Tensor, "rows"], rewards: Sequence[Reward]
) -> Float[Tensor, "rows turns"]:
    """The return of each turn, which sum up to the completion's; NaN where a row has no such turn.

    What `rewards.TurnRewards` weighs belongs to the turn that the environment gave it for, the score of a reward with
    `Reward.turn` to that turn, everything else to the completion's last turn.
    """
    turns = _turns(batch)
    weight = sum(reward.weight for reward in rewards if isinstance(reward, TurnRewards))
    by_turn = weight * turns.rewards.nan_to_num(0.0)
    for reward in rewards:
        if reward.turn is not None and reward.turn < by_turn.shape[1]:
            by_turn[:, reward.turn] += reward.weight * batch.rewards[reward.name].nan_to_num(0.0)
    last = torch.nn.functional.one_hot(turns.counts - 1, by_turn.shape[1])
    by_turn = by_turn + last * (returns - by_turn.sum(1))[:, None]
    return torch.where(_exists(turns), by_turn, torch.nan)


def turn_advantages(
    batch: RolloutBatch,
    returns: Float[Tensor, "rows turns"],
    advantage: Advantage,
    correct: Float[Tensor, "rows"] | None,
) -> Float[Tensor, "rows time"]:
    """The advantage of every token, from the return of its turn; 0 on the environment's tokens.

    Args:
        returns: from `turn_returns`. correct: as in `Advantage.with_correctness`.
    """
    number, count = _turns(batch).number, returns.shape[1]
    turn = torch.arange(count, device=number.device)
    of_turn = number[:, None] == turn[:, None]  # (rows, turns, time)
    result = advantage.with_correctness(
        returns.flatten(),
        (batch.groups[:, None] * count + turn).flatten(),
        batch.completion_ids.repeat_interleave(count, 0),
        (of_turn & batch.action_mask[:, None]).flatten(0, 1),
        None if correct is None else correct.repeat_interleave(count),
    )
    by_turn = result.unflatten(0, returns.shape)
    by_turn = by_turn if by_turn.dim() == 3 else by_turn[..., None]
    by_token: Tensor = (by_turn.nan_to_num(0.0) * of_turn).sum(1)
    return by_token


def _turns(batch: RolloutBatch) -> Turns:
    assert batch.turns is not None
    return batch.turns


def _exists(turns: Turns) -> Tensor:
    return torch.arange(turns.rewards.shape[1], device=turns.number.device) < turns.counts[:, None]
