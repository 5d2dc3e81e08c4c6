"""What a completion earns."""

from rewards.answers import ExactAnswer, Format, MathAnswer, NumericAnswer
from rewards.base import FunctionReward, Reward, total_reward
from rewards.models import ModelScore
from rewards.tasks import ReasoningGymScore, RecordsCost, RecordsReward

__all__ = [
    "ExactAnswer",
    "Format",
    "FunctionReward",
    "MathAnswer",
    "ModelScore",
    "NumericAnswer",
    "ReasoningGymScore",
    "RecordsCost",
    "RecordsReward",
    "Reward",
    "total_reward",
]
