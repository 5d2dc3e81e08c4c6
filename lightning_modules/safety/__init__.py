"""The statistical test of a policy and what is kept of it: ledger, certificate."""

from lightning_modules.safety.ledger import Ledger
from lightning_modules.safety.publish import publish
from lightning_modules.safety.settings import Constraint, SupervisedTerm
from lightning_modules.safety.splits import check_disjoint, check_splits, safety_data
from lightning_modules.safety.test import SafetyTest, Verdict, judge
from lightning_modules.safety.verify import verify

__all__ = [
    "Constraint",
    "Ledger",
    "SafetyTest",
    "SupervisedTerm",
    "Verdict",
    "check_disjoint",
    "check_splits",
    "judge",
    "publish",
    "safety_data",
    "verify",
]
