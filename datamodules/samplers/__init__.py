"""Samplers of training prompts: an order that is a function of (seed, epoch) and a position saved in checkpoints."""

from datamodules.samplers.curriculum import CurriculumSampler
from datamodules.samplers.greso import GRESOSampler
from datamodules.samplers.one_shot import OneShotSampler
from datamodules.samplers.prompt_sampler import PromptLoader, PromptSampler

__all__ = ["CurriculumSampler", "GRESOSampler", "OneShotSampler", "PromptLoader", "PromptSampler"]
