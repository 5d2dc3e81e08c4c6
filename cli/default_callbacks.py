"""The callbacks that every run has unless its configuration brings its own of the same class."""

from typing import Any

import lightning as L

import callbacks


def with_defaults(trainer: Any, method: str | None, paper: str | None) -> list[L.Callback]:
    """The configured callbacks, followed by the default ones of other classes.

    Args:
        trainer: the trainer's arguments, with instantiated `callbacks`.
        method: name of the run's method. paper: arXiv numbers of its papers.
    """
    configured = trainer.get("callbacks") or []
    configured = configured if isinstance(configured, list) else [configured]
    defaults: list[L.Callback] = [
        callbacks.RolloutProgress(),
        callbacks.CompletionsTable(),
        callbacks.CompletionTraces(),
        callbacks.RunFacts(method, paper),
        callbacks.SystemMetrics(),
        callbacks.BaselineValidation(),
        callbacks.ThinkingPlot(),
        callbacks.ConfusionMatrix(),
        callbacks.QuestionReport(),
        callbacks.QuantizationReport(),
        callbacks.WritePredictions(),
        callbacks.NonFiniteGradients(),
        callbacks.Doctor(),
        callbacks.RolloutCheckpoint(),
        callbacks.RunSummary(),
    ]
    switched_off: tuple[type, ...] = ()
    if trainer.get("enable_progress_bar") is False:
        switched_off += (callbacks.RolloutProgress,)
    if trainer.get("enable_checkpointing") is False:
        switched_off += (callbacks.RolloutCheckpoint,)
    replaced = [
        one
        for one in defaults
        if isinstance(one, switched_off) or any(isinstance(other, type(one)) for other in configured)
    ]
    return [*configured, *(one for one in defaults if one not in replaced)]
