"""Whether a number predicts wrong answers (arXiv 2503.01688): ROC-AUC, PR-AUC and ECE by group, with intervals.

A predictor is meant to be high where the answer is wrong. All figures are computed for many weights of the answers at
once, so that a bootstrap costs one matrix: the counts of resampled answers are weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from objectives.stress import Interval
from support.seeding import derive_seed

Weights = Float[np.ndarray, "resamples answers"]


@dataclass
class AnswerRecord:
    """One answered question.

    Fields:
        question: its id. correct: whether the most probable option is right.
        confidence: probability of that option among the options. is_label: whether the most probable token is a label.
        predictors: numbers that should be high where the answer is wrong, by name; NaN where one does not apply.
        groups: the groups that the question belongs to, by kind: {"topic": "law", "steps": "2"}.
    """

    question: str
    correct: bool
    confidence: float
    is_label: bool
    predictors: dict[str, float]
    groups: dict[str, str] = field(default_factory=dict)


def areas(
    scores: Float[np.ndarray, "answers"], wrong: Float[np.ndarray, "answers"], weights: Weights
) -> tuple[Float[np.ndarray, "resamples"], Float[np.ndarray, "resamples"]]:
    """(area under the ROC curve, average precision) of a score that should be high where `wrong` is 1.

    Equal scores share a point of the curves. NaN where the weights leave one class only.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # last answer of every distinct score
    hits = np.cumsum(weights[:, order] * wrong[order], 1)[:, ends]
    misses = np.cumsum(weights[:, order] * (1 - wrong[order]), 1)[:, ends]
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, fallout = hits / hits[:, -1:], misses / misses[:, -1:]
        precision = hits / (hits + misses)
    recall, fallout = (np.pad(part, ((0, 0), (1, 0))) for part in (recall, fallout))
    roc = (np.diff(fallout) * (recall[:, 1:] + recall[:, :-1]) / 2).sum(1)
    gains = np.diff(recall)
    average_precision = np.where(gains > 0, gains * np.nan_to_num(precision), gains).sum(1)
    one_class = (hits[:, -1] == 0) | (misses[:, -1] == 0)
    return np.where(one_class, np.nan, roc), np.where(one_class, np.nan, average_precision)


def calibration_error(
    confidence: Float[np.ndarray, "answers"], correct: Float[np.ndarray, "answers"], weights: Weights, bins: int = 10
) -> Float[np.ndarray, "resamples"]:
    """Expected calibration error over equally wide bins of the confidence."""
    of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), of_bin] = correct - confidence
    error: np.ndarray = np.abs(weights @ gaps).sum(1) / weights.sum(1)
    return error


def resampled(answers: int, resamples: int, seed: int) -> Weights:
    """First the answers themselves, then resamples of them, as counts."""
    rng = np.random.default_rng(derive_seed("answer uncertainty", seed))
    draws = rng.multinomial(answers, np.full(answers, 1 / answers), size=resamples)
    return np.concatenate([np.ones((1, answers)), draws])


def _interval(values: Float[np.ndarray, "resamples"]) -> Interval | None:
    """The first value with the interval of the others; None where it is undefined.

    Resamples that leave one class only are left out.
    """
    if np.isnan(values[0]):
        return None
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))


def group_figures(records: Sequence[AnswerRecord], resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Accuracy, rate of answers that are no label, ECE, and both areas of every predictor, of one group."""
    correct = np.array([float(record.correct) for record in records])
    confidence = np.array([record.confidence for record in records])
    weights = resampled(len(records), resamples, seed)
    figures: dict[str, Any] = {
        "questions": len(records),
        "accuracy": _interval((weights * correct).sum(1) / weights.sum(1)),
        "invalid": float(np.mean([not record.is_label for record in records])),
        "ece": _interval(calibration_error(confidence, correct, weights)),
    }
    for name in dict.fromkeys(name for record in records for name in record.predictors):
        scores = np.array([record.predictors.get(name, np.nan) for record in records])
        known = ~np.isnan(scores)
        if known.any():
            roc, precision = areas(scores[known], 1 - correct[known], weights[:, known])
            figures[name] = {
                "mean": float(scores[known].mean()),
                "roc_auc": _interval(roc),
                "pr_auc": _interval(precision),
            }
    return figures


def uncertainty_figures(
    records: Sequence[AnswerRecord], smallest: int = 10, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{"all": figures, "topic/law": figures, ...}; groups of fewer than `smallest` questions are left out.

    Args:
        records: in any order. resamples: number of resamples of the answers. seed: of the resamples.
    """
    records = sorted(records, key=lambda record: record.question)
    groups: dict[str, list[AnswerRecord]] = {"all": records}
    for kind in dict.fromkeys(kind for record in records for kind in record.groups):
        for value in sorted({record.groups[kind] for record in records if kind in record.groups}):
            groups[f"{kind}/{value}"] = [record for record in records if record.groups.get(kind) == value]
    return {
        name: group_figures(members, resamples, seed)
        for name, members in groups.items()
        if name == "all" or len(members) >= smallest
    }
