"""HC-RLHF: the method, its reward and cost models, and the safety test with its ledger and certificate."""

from lightning_modules.hc_rlhf.ledger import Ledger
from lightning_modules.hc_rlhf.module import HCRLHF
from lightning_modules.hc_rlhf.ppo_lagrangian import PPOLagrangian
from lightning_modules.hc_rlhf.publish import publish
from lightning_modules.hc_rlhf.safety_test import SafetyTest, Verdict, judge
from lightning_modules.hc_rlhf.scorer_training import ScorerTraining
from lightning_modules.hc_rlhf.settings import Constraint, SupervisedTerm
from lightning_modules.hc_rlhf.splits import check_disjoint, check_splits, safety_data
from lightning_modules.hc_rlhf.verify import verify

__all__ = [
    "HCRLHF",
    "Constraint",
    "Ledger",
    "PPOLagrangian",
    "SafetyTest",
    "ScorerTraining",
    "SupervisedTerm",
    "Verdict",
    "check_disjoint",
    "check_splits",
    "judge",
    "publish",
    "safety_data",
    "verify",
]
