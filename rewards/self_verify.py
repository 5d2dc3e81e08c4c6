"""The reward of verdicts on the policy's own solutions (self-verification, arXiv 2506.01369)."""

import math
import re
from typing import Any

from rewards.answers import answers
from rewards.base import Reward
from rollouts import RolloutBatch
from support.errors import ConfigError
from support.papers import Claim, Experiment, Paper

#: the words that state a verdict: right, wrong
YES_NO = ("Yes", "No")


def verdict_of(text: str, words: tuple[str, str] = YES_NO) -> bool | None:
    """The last of the words in a text: the first word is True, the second False; None without either.

    Args:
        words: the two words, whose case does not matter.
    """
    verdicts = re.findall(_pattern(words), text, re.IGNORECASE)
    return verdicts[-1].lower() == words[0].lower() if verdicts else None


def check_words(words: tuple[str, str]) -> tuple[str, str]:
    """The words for right and wrong. Raises ConfigError if one is empty or they are the same."""
    if len(words) != 2 or not all(words) or words[0].lower() == words[1].lower():
        raise ConfigError(f"the words of verdicts are {list(words)}; give two different ones, such as [right, wrong].")
    return (words[0], words[1])


def _pattern(words: tuple[str, str]) -> str:
    return rf"\b({re.escape(words[0])}|{re.escape(words[1])})\b"


class Verdict(Reward):
    """The weighted correctness of the verdict on a solution: a weight if it is true, else 0; NaN for other rows.

    The weight is G / (2 G_c) for one of G_c right solutions in a group of G, and G / (2 G_i) for one of G_i wrong ones,
    so that the rarer kind earns more and a perfect verifier earns 1 on average. If all solutions of a group are right
    or all are wrong, the weight is 1.

    Args:
        dynamic: use the weights; otherwise every true verdict earns 1.
        code_penalty: subtracted if the completion contains a code block (the paper: 0.5 for 7B, 0 for 1.5B).
        bare_penalty: subtracted if there is no reasoning before the verdict (the paper: 0.5 for 7B, 0 for 1.5B).
        words: the words for right and wrong; the last of them after the reasoning is the verdict.
        weight, name: as in every reward.
    """

    may_abstain = True

    def __init__(
        self,
        dynamic: bool = True,
        code_penalty: float = 0.5,
        bare_penalty: float = 0.5,
        words: tuple[str, str] = YES_NO,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(weight, name)
        self.words = check_words(words)
        self.dynamic, self.code_penalty, self.bare_penalty = dynamic, code_penalty, bare_penalty

    def verdicts(self, batch: RolloutBatch) -> list[bool | None]:
        """The verdict of every row: Yes (True), No (False) or neither (None)."""
        return [verdict_of(answer, self.words) for answer in answers(batch)]

    def _one(self, row: dict[str, Any], verdict: bool | None, completion: str) -> float:
        correct, size, group_correct = row["solution_correct"], row.get("group_size", 1), row.get("group_correct", 1)
        alike = group_correct if correct else size - group_correct
        weight = size / (2 * alike) if self.dynamic and alike < size else 1.0
        score = weight * (verdict is correct)
        without = re.sub(_pattern(self.words), "", completion, flags=re.IGNORECASE)
        bare = verdict is not None and not re.sub(r"</?think>|\W", "", without)
        return score - self.code_penalty * ("```" in completion) - self.bare_penalty * bare

    def score(self, batch: RolloutBatch) -> list[float]:
        rows = [batch.rows[i] for i in batch.groups.tolist()]
        triples = zip(rows, self.verdicts(batch), batch.completions, strict=True)
        return [
            self._one(row, verdict, text) if "solution_correct" in row else math.nan for row, verdict, text in triples
        ]


PAPER = Paper(
    name="self_verify",
    title="Self-verification",
    arxiv="2506.01369",
    idea="one policy solves and judges; votes are weighted by its own verdicts",
    classes=("lightning_modules.SelfVerify", "rewards.Verdict"),
    configs=("self_verify",),
    effect="right verdicts in training 0.70 → 0.87, pass@1 0.47 → 0.93",
    not_compared="its start must be able to judge a solution, which this one has never seen",
    experiment=Experiment(
        rollouts=40,
        arms={
            "self_verify": {},
            "binary reward": {
                "model.rewards": [
                    {"class_path": "rewards.ExactAnswer"},
                    {
                        "class_path": "rewards.Verdict",
                        "init_args": {"dynamic": False, "code_penalty": 0.0, "bare_penalty": 0.0},
                    },
                ]
            },
            "grpo": {"model.verification.share": 0.0},
        },
        columns={
            "val pass@1": "val/pass1",
            "balanced accuracy of verdicts": "val/verify_balanced",
            "right verdicts in training": "train/verify_accuracy",
            "vote": "val/vote",
            "majority": "val/majority",
        },
        expect="Balanced accuracy of verdicts above 0.7; pass@1 at least that of solving alone; the weighted vote at "
        "least as good as the majority's.",
        validate_every=10,
        claims=(
            Claim(text="verdicts become better", column="balanced accuracy of verdicts", sign=1, against="start"),
            Claim(
                text="than those of a policy that only solves",
                column="balanced accuracy of verdicts",
                sign=1,
                against="grpo, equal tokens",
            ),
            Claim(
                text="solving does not suffer", column="val pass@1", sign=0, against="grpo, equal tokens", margin=0.02
            ),
            Claim(
                text="votes weighted by verdicts are at least as good",
                column="vote",
                sign=0,
                against="self_verify",
                against_column="majority",
                margin=0.01,
            ),
        ),
    ),
)
