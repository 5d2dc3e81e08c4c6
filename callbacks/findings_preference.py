"""Checks for silent failures of preference tuning: one function per failure, with its threshold and the reason for it.

A check reads the module and the metrics of the steps so far, the first and the latest ones. It returns one paragraph
with the measured figure and the setting to change, or None.
"""

import statistics
from typing import Any

#: metrics that the checks read
READ = ("logprob/chosen", "logprob/rejected", "margin")
#: number of steps at the beginning and at the end that are compared: a batch's mean depends on its rows
WINDOW = 10
#: fraction of the mean log-prob from which a fall is reported
FALL = 0.1

Steps = list[dict[str, float]]


def likelihood_displacement(module: Any, steps: Steps) -> str | None:
    """The margin rises because rejected responses fall faster than preferred ones: both become unlikely."""
    if len(steps) < 2 * WINDOW:
        return None
    first, last = ([one["logprob/chosen"] for one in part] for part in (steps[:WINDOW], steps[-WINDOW:]))
    before, now = statistics.mean(first), statistics.mean(last)
    noise = 2 * (statistics.variance(first) / WINDOW + statistics.variance(last) / WINDOW) ** 0.5
    if before - now <= max(FALL * abs(before), noise):
        return None
    rejected = [statistics.mean(one["logprob/rejected"] for one in part) for part in (steps[:WINDOW], steps[-WINDOW:])]
    return (
        f"The mean log-prob per token of preferred responses fell from {before:.3g} to {now:.3g}, and that of rejected "
        f"ones from {rejected[0]:.3g} to {rejected[1]:.3g}: both become unlikely, in favour of responses that no data "
        "describe. Lower model.optimizer.lr or the number of steps, raise model.loss.beta for DPO, lower "
        "model.loss.alpha for REDI, or use a loss with a term for the preferred response (objectives.ORPO)."
    )


def no_preference(module: Any, steps: Steps) -> str | None:
    """The margin is exactly zero, also after the first step: the policy does not move, or both responses are equal."""
    recent = steps[1:][-WINDOW:]
    if len(recent) < WINDOW or any(one["margin"] for one in recent):
        return None
    return (
        f"The margin between preferred and rejected responses was exactly zero in {WINDOW} steps. Either the weights "
        "do not move (model.optimizer.lr is 0 or lost in rounding), or the responses of each pair are equal. Raise "
        "model.optimizer.lr, or check the columns of the pairs."
    )


ON_PREFERENCES = (likelihood_displacement, no_preference)
