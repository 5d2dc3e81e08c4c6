"""What a completion earns."""

from rewards.answers import ExactAnswer, Format, MathAnswer, NumericAnswer
from rewards.base import FunctionReward, Reward, total_reward
from rewards.hapo import HAPO, NgramRepetition
from rewards.judged import JudgedReward
from rewards.language import LanguageConsistency
from rewards.laser import GradedAnswer, Laser, LaserD, LaserDE
from rewards.length_family import KimiLength, L1Exact, L1Max, NormalisedLength, Truncation
from rewards.lengths import LengthPenalty, SoftOverlong
from rewards.models import ModelScore
from rewards.open_rs import CosineLength, LineFormat, ParsableMathAnswer, TagCount
from rewards.per_task import PerTask
from rewards.shorter_better import ShorterBetter
from rewards.tasks import ReasoningGymScore, RecordsCost, RecordsReward
from rewards.texts import OnTopic, ToxicityCost

__all__ = [
    "CosineLength",
    "ExactAnswer",
    "Format",
    "FunctionReward",
    "GradedAnswer",
    "HAPO",
    "JudgedReward",
    "KimiLength",
    "L1Exact",
    "L1Max",
    "LanguageConsistency",
    "Laser",
    "LaserD",
    "LaserDE",
    "LengthPenalty",
    "LineFormat",
    "MathAnswer",
    "ModelScore",
    "NgramRepetition",
    "NormalisedLength",
    "NumericAnswer",
    "OnTopic",
    "ParsableMathAnswer",
    "PerTask",
    "ReasoningGymScore",
    "RecordsCost",
    "RecordsReward",
    "Reward",
    "ShorterBetter",
    "SoftOverlong",
    "TagCount",
    "ToxicityCost",
    "Truncation",
    "total_reward",
]
