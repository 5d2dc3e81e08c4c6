"""What a completion earns."""

from rewards.answers import ExactAnswer, Format, MathAnswer, NumericAnswer
from rewards.base import Failure, FunctionReward, Reward, total_reward, without_failed
from rewards.choices import MultipleChoice
from rewards.code import CodeTests
from rewards.failures import Guarded
from rewards.instructions import InstructionFollowing
from rewards.judge import HTTPJudge
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
    "CodeTests",
    "ExactAnswer",
    "Failure",
    "FilledSchema",
    "Format",
    "FunctionReward",
    "Guarded",
    "HTTPJudge",
    "InstructionFollowing",
    "JsonPart",
    "LanguageConsistency",
    "LengthBonus",
    "LengthPenalty",
    "MathAnswer",
    "ModelScore",
    "MultipleChoice",
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
    "without_failed",
]
