"""The methods: each a LightningModule."""

from lightning_modules.sft import SFT

__all__ = ["SFT"]
