"""What happens between steps: KL control, curriculum, tables, checkpoints, exports."""

from callbacks.baseline import BaselineValidation
from callbacks.checkpoints import RolloutCheckpoint
from callbacks.completions import CompletionsTable
from callbacks.curriculum import Curriculum
from callbacks.difficulty import DifficultyLedger
from callbacks.export import ExportPolicy
from callbacks.kl_control import AdaptiveKL, FixedKL, ScheduledKL
from callbacks.laser_monitor import LaserMonitor
from callbacks.non_finite import NonFiniteGradients
from callbacks.predictions import WritePredictions
from callbacks.progress import RolloutProgress
from callbacks.reference_reset import Plateau, ReferenceReset
from callbacks.stages import Stage, StageSchedule
from callbacks.system import SystemMetrics
from callbacks.thinking_plot import ThinkingPlot

__all__ = [
    "AdaptiveKL",
    "BaselineValidation",
    "CompletionsTable",
    "Curriculum",
    "DifficultyLedger",
    "ExportPolicy",
    "FixedKL",
    "LaserMonitor",
    "NonFiniteGradients",
    "Plateau",
    "ReferenceReset",
    "RolloutCheckpoint",
    "RolloutProgress",
    "ScheduledKL",
    "Stage",
    "StageSchedule",
    "SystemMetrics",
    "ThinkingPlot",
    "WritePredictions",
]
