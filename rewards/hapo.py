"""HAPO: a reward for solutions shorter than the problem's shortest right solution so far.

Huang, Zhang and Cardie, arXiv 2505.11225. With h the history of the problem and L the length, u = cos(pi/2 L/h) for
L < 2h, else -1: r = c + w r_len, r_len = max(-0.7, u) if right, min(0, u) if wrong, 0 on the first visit. h is updated
after the rewards of a rollout.

    python main.py fit --config configs/hapo.yaml
"""

from collections import defaultdict
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewards.base import Reward
from rewards.judged import JudgedReward
from rewards.repetition import places
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper
from support.processes import gathered, means

Lengths = Float[Tensor, "rows"]

#: minimum r_len of a right completion, so that with w = 1 it stays above a wrong one
FLOOR = -0.7
#: tokens above the history without a penalty in the linear form, as a fraction of the history
SLACK = 0.1


def cosine(lengths: Lengths, history: Lengths, correct: Bool[Tensor, "rows"]) -> Lengths:
    """r_len of the paper: falls from 1 to 0 at the history and to -1 at twice the history."""
    u = torch.where(lengths < 2 * history, torch.cos(torch.pi / 2 * lengths / history), -1.0)
    return torch.where(correct, u.clamp(min=FLOOR), u.clamp(max=0.0))


def linear(lengths: Lengths, history: Lengths, correct: Bool[Tensor, "rows"]) -> Lengths:
    """The other form of the official code: 1 - L/h below the history, 0 up to 10 % above it, then the same slope."""
    above = ((1 + SLACK) * history - lengths).clamp(max=0.0) / history
    below = (1 - lengths / history).clamp(min=0.0)
    return torch.where(correct, below + above.clamp(min=FLOOR), above.clamp(min=-1.0))


class HAPO(JudgedReward):
    """r_len, from a history of every training problem by the data row's `id`.

    The history is part of every checkpoint; validation reads it but does not change it. Processes exchange their
    lengths, so with several processes the reward must be listed in `model.rewards` itself, not inside a PerTask.

    Args:
        shape: form of r_len.
        history: min is the shortest right length of all visits, mean the mean over all right ones.
        weight: w, 1 in the paper; between 0 and 1 a right completion stays above a wrong one.
        correctness, name: as in every JudgedReward.
    """

    def __init__(
        self,
        shape: Literal["cosine", "linear"] = "cosine",
        history: Literal["min", "mean"] = "min",
        correctness: str = "exact_answer",
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(correctness, weight, name or "hapo")
        if not 0 <= weight <= 1:
            raise ConfigError(
                f"HAPO: weight is {weight}, with which a wrong completion may earn more than a right one; set it "
                "between 0 and 1."
            )
        self.shape, self.kind = {"cosine": cosine, "linear": linear}[shape], history
        self.history: dict[str, tuple[float, int]] = {}  # id -> (tokens, number of right completions)

    def known(self, batch: RolloutBatch) -> Float[Tensor, "prompts"]:
        """The history of every prompt in tokens; NaN for a prompt without history."""
        histories = [self.history.get(str(row.get("id")), (torch.nan, 0))[0] for row in batch.rows]
        return torch.tensor(histories, device=batch.lengths.device)

    def score(self, batch: RolloutBatch) -> Float[Tensor, "rows"]:
        history = self.known(batch)[batch.groups]
        return self.shape(batch.lengths.float(), history, self.correct(batch)).masked_fill(history.isnan(), 0.0)

    def observe(self, batch: RolloutBatch) -> None:
        lengths, right = batch.lengths.tolist(), self.correct(batch).tolist()
        right_lengths: dict[str, list[int]] = defaultdict(list)
        for prompt, length, counts in zip(batch.groups.tolist(), lengths, right, strict=True):
            if counts:
                right_lengths[str(batch.rows[prompt]["id"])].append(length)
        for part in gathered(dict(right_lengths)):
            for id, new_lengths in part.items():
                self._add(id, new_lengths)

    def _add(self, id: str, lengths: list[int]) -> None:
        before, count = self.history.get(id, (0.0, 0))
        total = count + len(lengths)
        if self.kind == "mean":
            self.history[id] = ((before * count + sum(lengths)) / total, total)
        else:
            self.history[id] = (float(min([before, *lengths] if count else lengths)), total)

    def metrics(self, batch: RolloutBatch) -> dict[str, float]:
        known, correct = self.known(batch), self.correct(batch)
        ratio, scores = batch.lengths / known[batch.groups], batch.rewards[self.name]
        visited = ~ratio.isnan()
        values = {
            "hapo_known": ~known.isnan(),
            "hapo_history": known[~known.isnan()],
            "hapo_ratio": ratio[visited],
            "hapo_reward/correct": scores[visited & correct],
            "hapo_reward/wrong": scores[visited & ~correct],
        }
        return super().metrics(batch) | means(values)

    def state_dict(self) -> dict[str, Any]:
        return {"history": {id: list(pair) for id, pair in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = {id: (float(tokens), int(count)) for id, (tokens, count) in state.get("history", {}).items()}


class NgramRepetition(Reward):
    """Minus the fraction of a completion's tokens inside n-grams that occur more than once.

    It is HAPO's optional repetition term, with weight > 0.

    Args:
        n: number of tokens of an n-gram; 3 in HAPO.
        weight, name: as in every reward.
    """

    def __init__(self, n: int = 3, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        if n < 1:
            raise ConfigError(f"NgramRepetition: n is {n}; set it to 1 token or more.")
        self.n = n

    def score(self, batch: RolloutBatch) -> list[float]:
        return [
            -self.share(ids[mask].tolist())
            for ids, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)
        ]

    def share(self, tokens: list[int]) -> float:
        """The fraction for one completion."""
        inside = {
            place + i
            for starts in places(tokens, self.n).values()
            if len(starts) > 1
            for place in starts
            for i in range(self.n)
        }
        return len(inside) / max(1, len(tokens))


PAPER = Paper(
    name="hapo",
    title="HAPO",
    arxiv="2505.11225",
    idea="a reward for being shorter than the problem's shortest right solution so far",
    classes=("rewards.HAPO",),
    configs=("hapo",),
    effect="60 → 37.5 tokens and pass@1 0.93, where GRPO has 0.88 at 60 tokens",
    experiment=Experiment(
        rollouts=40,
        arms={
            "hapo": {},
            "hapo, not divided": {
                "model.advantage": {"class_path": "objectives.GroupNorm", "init_args": {"scale": "none"}}
            },
            "grpo": {"model.rewards": [{"class_path": "rewards.ExactAnswer"}]},
        },
        columns={
            "val pass@1": "val/pass1",
            "val length": "val/length",
            "length / history": "train/hapo_ratio",
            "history": "train/hapo_history",
        },
        expect="Length falls from the second epoch on (rollout 9), not in the first.",
        claims=(
            Claim(text="completions become shorter", column="val length", sign=-1),
            Claim(text="at no loss of accuracy", column="val pass@1", sign=0, margin=0.02),
        ),
    ),
)
