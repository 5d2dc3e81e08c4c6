"""Callbacks that act between rollouts: KL control, curriculum, tables, checkpoints, exports."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from callbacks.answer_uncertainty import AnswerUncertainty
from callbacks.baseline import BaselineValidation
from callbacks.checkpoints import RolloutCheckpoint
from callbacks.completions import CompletionsTable
from callbacks.confusion import ConfusionMatrix
from callbacks.curriculum import Curriculum
from callbacks.difficulty import DifficultyLedger
from callbacks.doctor import Doctor
from callbacks.entropy_control import AdaptiveEntropy
from callbacks.export import ExportPolicy
from callbacks.export_adapter import ExportAdapter
from callbacks.gradient_norms import GradientNorms
from callbacks.greso import GRESO
from callbacks.kl_control import AdaptiveKL, FixedKL, ScheduledKL
from callbacks.laser_monitor import LaserMonitor
from callbacks.non_finite import NonFiniteGradients
from callbacks.one_shot import OneShot
from callbacks.predictions import WritePredictions
from callbacks.progress import RolloutProgress
from callbacks.push_to_hub import PushToHub
from callbacks.quantization_report import QuantizationReport
from callbacks.recorder import RolloutRecorder
from callbacks.reference_reset import Plateau, ReferenceReset
from callbacks.reports import QuestionReport
from callbacks.run_facts import RunFacts
from callbacks.saturn import SaturnCurriculum
from callbacks.stages import Stage, StageSchedule
from callbacks.summary import RunSummary
from callbacks.system import SystemMetrics
from callbacks.thinking_plot import ThinkingPlot
from callbacks.token_budget import TokenBudget
from callbacks.traces import CompletionTraces
from callbacks.weight_difference import WeightDifference
from datamodules.samplers import GRESOSampler, OneShotSampler

__all__ = [
    "GRESO",
    "AdaptiveEntropy",
    "AdaptiveKL",
    "AnswerUncertainty",
    "BaselineValidation",
    "CompletionTraces",
    "CompletionsTable",
    "ConfusionMatrix",
    "Curriculum",
    "DifficultyLedger",
    "Doctor",
    "ExportAdapter",
    "ExportPolicy",
    "FixedKL",
    "GRESOSampler",
    "GradientNorms",
    "LaserMonitor",
    "NonFiniteGradients",
    "OneShot",
    "OneShotSampler",
    "Plateau",
    "QuestionReport",
    "QuantizationReport",
    "PushToHub",
    "ReferenceReset",
    "RolloutCheckpoint",
    "RolloutProgress",
    "RolloutRecorder",
    "RunFacts",
    "RunSummary",
    "SaturnCurriculum",
    "ScheduledKL",
    "Stage",
    "StageSchedule",
    "SystemMetrics",
    "ThinkingPlot",
    "TokenBudget",
    "WeightDifference",
    "WritePredictions",
]
