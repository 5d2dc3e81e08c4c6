"""The methods; each is a LightningModule."""

from lightning_posttrain import check_siblings

check_siblings(__name__)

from lightning_modules.adapt_think import AdaptThink, Forcing
from lightning_modules.auto_think import AutoThink, ModeRewards
from lightning_modules.core.calibration import Calibration
from lightning_modules.core.critic import Critic
from lightning_modules.core.evaluation import Evaluation
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.reference_rewards import Reference
from lightning_modules.core.terms import KLPenalty, Shaping
from lightning_modules.distill import Distill, Teacher
from lightning_modules.grpo import GRPO
from lightning_modules.hc_rlhf import HCRLHF, Constraint, PPOLagrangian, SafetyTest, ScorerTraining, SupervisedTerm
from lightning_modules.ppo import PPO
from lightning_modules.preference_tuning import Preference
from lightning_modules.prorl import ProRL
from lightning_modules.quantize import Quantize
from lightning_modules.reward_models import CostModel, RewardModel
from lightning_modules.s_grpo import SGRPO
from lightning_modules.scored_sft import ScoredSFT
from lightning_modules.self_verify import SelfVerify, Verification
from lightning_modules.sequence_classifier import SequenceClassifier
from lightning_modules.sft import SFT
from lightning_modules.still3 import Still3
from lightning_modules.stress_test import StressTest
from lightning_modules.t_spmo import TSPMO
from lightning_modules.thinker import Thinker
from lightning_modules.triplet_embedder import TripletEmbedder
from lightning_modules.uncertainty import Uncertainty

__all__ = [
    "GRPO",
    "HCRLHF",
    "PPO",
    "SFT",
    "SGRPO",
    "TSPMO",
    "AdaptThink",
    "AutoThink",
    "Calibration",
    "Constraint",
    "CostModel",
    "Critic",
    "Distill",
    "Evaluation",
    "Forcing",
    "KLPenalty",
    "ModeRewards",
    "OnPolicyModule",
    "PPOLagrangian",
    "Preference",
    "ProRL",
    "Quantize",
    "Reference",
    "RewardModel",
    "SafetyTest",
    "ScoredSFT",
    "ScorerTraining",
    "SelfVerify",
    "SequenceClassifier",
    "Shaping",
    "Still3",
    "StressTest",
    "SupervisedTerm",
    "Teacher",
    "Thinker",
    "TripletEmbedder",
    "Uncertainty",
    "Verification",
]
