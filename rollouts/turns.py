"""The turns of a batch of completions: which tokens belong to which turn, and what the environment said of each."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

FinishReason = Literal["eos", "stop", "length"]


@dataclass
class Turns:
    """Turns of the policy in each completion of a batch.

    Fields:
        number: of the turn that each token belongs to, from 0; -1 on the environment's tokens and on padding.
        rewards: that the environment gave for each turn; NaN where it gave none and where a row has fewer turns.
        finish_reasons: why each turn ended, by row.
        values: the environment's numbers by name, one per row.
        message_start: index of the first token of each row's last message: 0, or where the chat template began another
            message of the policy.
    """

    number: Int[Tensor, "rows time"]
    rewards: Float[Tensor, "rows turns"]
    finish_reasons: list[list[FinishReason]]
    values: dict[str, Float[Tensor, "rows"]]
    message_start: Int[Tensor, "rows"]

    @classmethod
    def concatenate(cls, parts: "list[Turns]") -> "Turns":
        """The rows of several batches, padded to the widest."""
        time, turns = (max(getattr(part, name).shape[1] for part in parts) for name in ("number", "rewards"))
        return cls(
            torch.cat([F.pad(part.number, (0, time - part.number.shape[1]), value=-1) for part in parts]),
            torch.cat([F.pad(part.rewards, (0, turns - part.rewards.shape[1]), value=math.nan) for part in parts]),
            [reasons for part in parts for reasons in part.finish_reasons],
            {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
            torch.cat([part.message_start for part in parts]),
        )

    def take(self, rows: Int[Tensor, "selected"]) -> "Turns":
        """The turns of these rows, in this order."""
        return Turns(
            self.number[rows],
            self.rewards[rows],
            [self.finish_reasons[row] for row in rows.tolist()],
            {name: values[rows] for name, values in self.values.items()},
            self.message_start[rows],
        )

    def cut(self, kept: Bool[Tensor, "rows time"]) -> "Turns":
        """The turns of completions of which only the first tokens are kept; a turn that lost tokens is too long."""
        number = self.number.masked_fill(~kept, -1)
        reasons, counts = [], (number.amax(1) + 1).tolist()
        for row, count in enumerate(counts):
            whole = bool((number[row] == count - 1).sum() == (self.number[row] == count - 1).sum())
            last: list[FinishReason] = self.finish_reasons[row][count - 1 : count] if whole else ["length"]
            reasons.append(self.finish_reasons[row][: max(0, count - 1)] + (last if count else []))
        beyond = torch.arange(self.rewards.shape[1], device=number.device) >= number.amax(1, keepdim=True) + 1
        start = torch.minimum(self.message_start, kept.sum(1))
        return Turns(number, self.rewards.masked_fill(beyond, math.nan), reasons, self.values, start)

    def to(self, device: torch.device) -> "Turns":
        """The same on another device."""
        values = {name: numbers.to(device) for name, numbers in self.values.items()}
        number, rewards, start = self.number.to(device), self.rewards.to(device), self.message_start.to(device)
        return Turns(number, rewards, self.finish_reasons, values, start)

    @property
    def counts(self) -> Int[Tensor, "rows"]:
        """Number of turns of each row."""
        return torch.tensor([len(reasons) for reasons in self.finish_reasons], device=self.number.device)

    @property
    def totals(self) -> Float[Tensor, "rows"]:
        """Sum of the environment's rewards of each row, 0 for a row without any."""
        return self.rewards.nansum(1)

    def rewards_of(self, turn: int) -> Float[Tensor, "rows"]:
        """The environment's reward for one turn; NaN where it gave none and for rows without the turn."""
        return self.rewards[:, turn] if turn < self.rewards.shape[1] else torch.full_like(self.rewards[:, 0], math.nan)

    def lengths(self, turn: int) -> Int[Tensor, "rows"]:
        """Tokens of one turn, 0 for rows that do not have it."""
        return (self.number == turn).sum(1)

    def metrics(self, mask: Bool[Tensor, "rows time"]) -> dict[str, Float[Tensor, "rows"]]:
        """Numbers to log, one per row: turns, those that were too long, the environment's share of the tokens.

        Args:
            mask: the batch's completion mask.
        """
        cut = [float(reasons.count("length")) for reasons in self.finish_reasons]
        environment_tokens = (mask & (self.number < 0)).sum(1)
        return {
            "turns": self.counts.float(),
            "turns_truncated": torch.tensor(cut, device=mask.device),
            "environment_fraction": environment_tokens / mask.sum(1).clamp(min=1),
            **self.values,
        }
