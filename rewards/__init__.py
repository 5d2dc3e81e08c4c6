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
from rewards.think_json import FilledSchema, JsonPart, ThinkAnswerFormat

__all__ = [
    "ActionBonus",
    "ExactAnswer",
    "FilledSchema",
    "Format",
    "FunctionReward",
    "JsonPart",
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
    "ThinkAnswerFormat",
    "ToxicityCost",
    "Verdict",
    "total_reward",
]
