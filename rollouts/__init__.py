"""Rollouts: the batch that all parts of a step share, and the engines that generate completions from prompts."""

from rollouts.batch import RolloutBatch, ends_open
from rollouts.batch_plan import BatchPlan
from rollouts.completion_records import completion_records
from rollouts.embedded import EmbeddedEngine
from rollouts.engine import Engine
from rollouts.sampling import SamplingParams
from rollouts.storage import read_rollout, write_rollout
from rollouts.thinking_format import Mode, ThinkingFormat, needs_thinking, thinking_format
from rollouts.transformers_engine import TransformersEngine
from rollouts.vllm import VLLMEngine, VLLMServer
from rollouts.written import written

__all__ = [
    "BatchPlan",
    "EmbeddedEngine",
    "Engine",
    "Mode",
    "RolloutBatch",
    "SamplingParams",
    "ThinkingFormat",
    "TransformersEngine",
    "VLLMEngine",
    "VLLMServer",
    "completion_records",
    "ends_open",
    "needs_thinking",
    "read_rollout",
    "thinking_format",
    "write_rollout",
    "written",
]
