"""What is sampled from: the order of the prompts and the position in it are state that a checkpoint carries."""

from datamodules.sampler import PromptLoader, PromptSampler

__all__ = ["PromptLoader", "PromptSampler"]
