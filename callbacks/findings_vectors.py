"""Checks for silent failures of embedders: one function per failure, with its threshold and the reason for it.

A check reads the module and the metrics of the steps so far, the first and the latest ones. It returns one paragraph
with the measured figure and the setting to change, or None.
"""

import statistics
from typing import Any

from callbacks.findings_preference import WINDOW, Steps

#: metrics that the checks read
READ_OF_VECTORS = ("active", "distance/positive", "distance/negative")
#: mean cosine distance of anchors and negatives below which all texts have nearly one vector
COLLAPSED = 0.01


def collapsed_vectors(module: Any, steps: Steps) -> str | None:
    """All texts have nearly the same vector, so the loss stays at the margin."""
    recent = steps[-WINDOW:]
    if len(steps) < 2 * WINDOW:
        return None
    distance = statistics.mean(one["distance/negative"] for one in recent)
    if distance >= COLLAPSED:
        return None
    return (
        f"The mean cosine distance of anchors and negatives was {distance:.2g} in the latest {WINDOW} steps: all texts "
        "have nearly the same vector. Lower model.optimizer.lr, try model.pooling mean, or use "
        "objectives.MultipleNegatives."
    )


def easy_negatives(module: Any, steps: Steps) -> str | None:
    """No triplet has a loss from the beginning on: the negatives are too easy to teach anything."""
    if len(steps) < WINDOW or any(one["active"] for one in steps[:WINDOW]):
        return None
    return (
        f"In the first {WINDOW} steps no triplet was active: every negative is farther than the positive by the margin "
        "already, and nothing is learned. Set model.mine_every, use harder negatives, or raise model.loss.margin."
    )


ON_VECTORS = (collapsed_vectors, easy_negatives)
