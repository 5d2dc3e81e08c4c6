"""Shared by many tests: a small method, a quiet trainer, a training of a few rollouts, a shipped configuration."""

from tests.helpers.commands import ROOT, run_config
from tests.helpers.rewards import brevity, digits
from tests.helpers.training import adamw, build, fit, quiet_trainer, sgd, sums, weights

__all__ = [
    "ROOT",
    "adamw",
    "brevity",
    "build",
    "digits",
    "fit",
    "quiet_trainer",
    "run_config",
    "sgd",
    "sums",
    "weights",
]
