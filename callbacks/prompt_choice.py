"""Shared steps of callbacks that choose the training prompts: install a sampler and find it again."""

from collections.abc import Callable
from typing import Any, TypeVar

import lightning as L

from datamodules import PromptSampler
from support.errors import ConfigError

Sampler = TypeVar("Sampler", bound=PromptSampler)


def install_sampler(trainer: L.Trainer, stage: str, sampler: Callable[..., PromptSampler]) -> None:
    """Set the data module's `sampler` for a fit; data without that attribute are left alone.

    Args:
        sampler: (rows, prompts per rollout, seed, rank, processes) -> the sampler of the training prompts.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if stage == "fit" and hasattr(data, "sampler"):
        data.sampler = sampler


def installed_sampler(trainer: L.Trainer, callback: L.Callback, sampler_class: type[Sampler]) -> Sampler:
    """The sampler that the training prompts come from.

    Raises:
        ConfigError: if it is not a `sampler_class`: the data module has no `sampler`, or another callback set it.
    """
    sampler = getattr(trainer.train_dataloader, "prompt_sampler", None)
    if not isinstance(sampler, sampler_class):
        raise ConfigError(
            f"{type(callback).__name__} needs a {sampler_class.__name__}, but the training prompts come from "
            f"{type(sampler).__name__}. Use a data module of this project, or a PromptLoader with a "
            f"{sampler_class.__name__}, and remove other callbacks that choose prompts from trainer.callbacks."
        )
    return sampler
