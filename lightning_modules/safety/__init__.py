"""The statistical test of a policy and what is kept of it: ledger, certificate."""

from lightning_modules.safety.ledger import Ledger
from lightning_modules.safety.publish import publish
from lightning_modules.safety.test import SafetyTest, Verdict, check_disjoint, judge
from lightning_modules.safety.verify import verify

__all__ = ["Ledger", "SafetyTest", "Verdict", "check_disjoint", "judge", "publish", "verify"]
