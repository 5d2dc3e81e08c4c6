"""From prompts to completions: the batch that everybody passes on, and the engines that generate."""

from rollouts.batch import RolloutBatch
from rollouts.engine import Engine, TransformersEngine
from rollouts.plan import BatchPlan
from rollouts.sampling import SamplingParams

__all__ = ["BatchPlan", "Engine", "RolloutBatch", "SamplingParams", "TransformersEngine"]
