"""The methods: each a LightningModule."""

from lightning_modules.evaluation import Evaluation
from lightning_modules.grpo import GRPO
from lightning_modules.on_policy import KLPenalty, OnPolicyModule
from lightning_modules.sft import SFT

__all__ = ["GRPO", "SFT", "Evaluation", "KLPenalty", "OnPolicyModule"]
