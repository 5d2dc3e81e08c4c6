"""Which prompts come next: an order that is a function of (seed, epoch), and a position that a checkpoint carries."""

from datamodules.samplers.curriculum import CurriculumSampler
from datamodules.samplers.greso import GRESOSampler
from datamodules.samplers.one_shot import OneShotSampler
from datamodules.samplers.prompt_sampler import PromptLoader, PromptSampler

__all__ = ["CurriculumSampler", "GRESOSampler", "OneShotSampler", "PromptLoader", "PromptSampler"]
