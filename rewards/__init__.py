"""Rewards: scores of completions."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from rewards.answers import AnswerReward, ExactAnswer, Format, MathAnswer, NumericAnswer
from rewards.base import Failure, Reward, correct_rows, total_reward, without_failed
from rewards.choices import MultipleChoice
from rewards.code import CodeTests
from rewards.cort import CodeFailures
from rewards.difficulty import DifficultyJudge
from rewards.failures import Guarded
from rewards.function_reward import FunctionReward, as_reward
from rewards.hapo import HAPO, NgramRepetition
from rewards.instructions import InstructionFollowing
from rewards.judge import HTTPJudge
from rewards.judged import JudgedReward
from rewards.language import LanguageConsistency
from rewards.laser import GradedAnswer, Laser, LaserD
from rewards.laser_de import LaserDE
from rewards.length_family import KimiLength, L1Exact, L1Max, NormalisedLength, Truncation
from rewards.lengths import LengthPenalty, SoftOverlong
from rewards.models import ModelScore
from rewards.open_rs import CosineLength, LineFormat, ParsableMathAnswer, TagCount
from rewards.per_task import Abstain, PerTask
from rewards.saturn import SatAssignment
from rewards.self_check import GoldProblem
from rewards.self_verify import Verdict
from rewards.shorter_better import ShorterBetter
from rewards.sleep import SleepRubric, SwapSensitivity
from rewards.still3 import ActionBonus, LengthBonus
from rewards.tasks import ReasoningGymScore, RecordsCost, RecordsReward
from rewards.texts import OnTopic, ToxicityCost
from rewards.think_json import FilledSchema, JsonPart, ThinkAnswerFormat
from rewards.thinker import BalancedVerdict, FinalAnswer, LikelySummary
from rewards.turn_rewards import TurnReward, TurnRewards

__all__ = [
    "HAPO",
    "Abstain",
    "ActionBonus",
    "AnswerReward",
    "BalancedVerdict",
    "CodeFailures",
    "CodeTests",
    "CosineLength",
    "DifficultyJudge",
    "ExactAnswer",
    "Failure",
    "FilledSchema",
    "FinalAnswer",
    "Format",
    "FunctionReward",
    "GoldProblem",
    "GradedAnswer",
    "Guarded",
    "HTTPJudge",
    "InstructionFollowing",
    "JsonPart",
    "JudgedReward",
    "KimiLength",
    "L1Exact",
    "L1Max",
    "LanguageConsistency",
    "Laser",
    "LaserD",
    "LaserDE",
    "LengthBonus",
    "LengthPenalty",
    "LikelySummary",
    "LineFormat",
    "MathAnswer",
    "ModelScore",
    "MultipleChoice",
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
    "SatAssignment",
    "ShorterBetter",
    "SleepRubric",
    "SoftOverlong",
    "SwapSensitivity",
    "TagCount",
    "ThinkAnswerFormat",
    "ToxicityCost",
    "Truncation",
    "TurnReward",
    "TurnRewards",
    "Verdict",
    "as_reward",
    "correct_rows",
    "total_reward",
    "without_failed",
]
