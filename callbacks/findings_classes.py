"""Checks for silent failures of classifiers: one function per failure, with its threshold and the reason for it.

A check reads the module and the metrics of the steps so far, the first and the latest ones. It returns one paragraph
with the measured figure and the setting to change, or None.
"""

import statistics
from typing import Any

from callbacks.findings_preference import WINDOW, Steps

#: metrics that the checks read
READ_OF_CLASSES = ("accuracy", "cut", "predicted_classes")
#: fraction of texts that are cut off from which it is reported: what decides may stand at their ends
CUT = 0.1


def one_class(module: Any, steps: Steps) -> str | None:
    """Every text is taken for the same class in many consecutive batches, after the first ones."""
    recent = steps[WINDOW:][-WINDOW:]
    if len(recent) < WINDOW or any(one["predicted_classes"] > 1 for one in recent):
        return None
    accuracy = statistics.mean(one["accuracy"] for one in recent)
    return (
        f"In {WINDOW} consecutive batches every text was taken for one class (accuracy {accuracy:.3g}). The learning "
        "rate may be too high (lower model.optimizer.lr), or the pooled token may not see the text: try model.pooling "
        "mean."
    )


def cut_texts(module: Any, steps: Steps) -> str | None:
    """Many texts are longer than max_length."""
    recent = steps[-WINDOW:]
    if len(recent) < WINDOW or (share := statistics.mean(one["cut"] for one in recent)) <= CUT:
        return None
    return (
        f"{share:.0%} of the texts of the latest {WINDOW} batches reach model.max_length ({module.max_length} tokens) "
        "and are cut off there. Raise it, up to the model's context, or shorten the texts."
    )


ON_CLASSES = (one_class, cut_texts)
