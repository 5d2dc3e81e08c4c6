"""Votes on the answer of a problem, weighted by the policy's own verdicts.

Source: Incentivizing LLMs to Self-Verify Their Answers, arXiv 2506.01369.
"""

import math
from collections.abc import Sequence
from typing import Literal


def weighted_vote(
    answers: Sequence[str],
    scores: Sequence[float],
    exponent: float = 1.0,
    form: Literal["power", "exponential"] = "power",
) -> int:
    """Index of the first sample with the winning answer, argmax_a sum_{i: answer_i = a} s_i^exponent.

    If all weights are 0, the majority wins; of equal sums, the answer that came first.

    Args:
        answers: answers of all samples of one problem, the same text for equivalent ones; empty ones vote only if
            there are no others.
        scores: s, in [0, 1].
        exponent: 0 is the majority vote; a larger exponent gives more weight to the best scores.
        form: power, or exponential for exp(exponent * s).
    """
    voters = [i for i, answer in enumerate(answers) if answer] or list(range(len(answers)))
    weights = {i: scores[i] ** exponent if form == "power" else math.exp(exponent * scores[i]) for i in voters}
    if not any(weights.values()):
        weights = dict.fromkeys(voters, 1.0)
    totals: dict[str, float] = {}
    for i, weight in weights.items():
        totals[answers[i]] = totals.get(answers[i], 0.0) + weight
    return next(i for i in voters if answers[i] == max(totals, key=totals.__getitem__))
