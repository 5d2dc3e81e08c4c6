"""What a completion earns."""

from rewards.answers import ExactAnswer, Format, MathAnswer, NumericAnswer
from rewards.base import FunctionReward, Reward, total_reward
from rewards.language import LanguageConsistency
from rewards.lengths import LengthPenalty, SoftOverlong
from rewards.models import ModelScore
from rewards.per_task import PerTask
from rewards.saturn import SatAssignment
from rewards.self_verify import Verdict
from rewards.still3 import ActionBonus, LengthBonus
from rewards.tasks import ReasoningGymScore, RecordsCost, RecordsReward
from rewards.texts import OnTopic, ToxicityCost

__all__ = [
    "ActionBonus",
    "ExactAnswer",
    "Format",
    "FunctionReward",
    "LanguageConsistency",
    "LengthBonus",
    "LengthPenalty",
    "MathAnswer",
    "ModelScore",
    "NumericAnswer",
    "OnTopic",
    "PerTask",
    "ReasoningGymScore",
    "RecordsCost",
    "RecordsReward",
    "Reward",
    "SatAssignment",
    "SoftOverlong",
    "ToxicityCost",
    "Verdict",
    "total_reward",
]
