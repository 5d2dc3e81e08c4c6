"""Rollouts: the batch that all parts of a step share, and the engines that generate completions from prompts."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from rollouts.batch import RolloutBatch, ends_open
from rollouts.batch_plan import BatchPlan
from rollouts.completion_records import completion_records
from rollouts.embedded import EmbeddedEngine
from rollouts.engine import Engine, assemble, padded_forced
from rollouts.environment import Conversation, Environment, Reply, Turn
from rollouts.sampling import SamplingOverrides, SamplingParams, overridden
from rollouts.storage import read_rollout, write_rollout
from rollouts.thinking_format import Mode, ThinkingFormat, needs_thinking, thinking_format
from rollouts.transformers_engine import TransformersEngine
from rollouts.turns import Turns
from rollouts.vllm import VLLMEngine, VLLMServer
from rollouts.written import text_batch, written

__all__ = [
    "BatchPlan",
    "Conversation",
    "EmbeddedEngine",
    "Engine",
    "Environment",
    "Mode",
    "Reply",
    "RolloutBatch",
    "SamplingOverrides",
    "SamplingParams",
    "ThinkingFormat",
    "TransformersEngine",
    "Turn",
    "Turns",
    "VLLMEngine",
    "VLLMServer",
    "assemble",
    "completion_records",
    "ends_open",
    "needs_thinking",
    "overridden",
    "padded_forced",
    "read_rollout",
    "text_batch",
    "thinking_format",
    "write_rollout",
    "written",
]
