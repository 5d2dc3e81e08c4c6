"""A small method, its data and a training of a few rollouts, on the CPU and without a word."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules import ArithmeticPrompts
from lightning_modules import GRPO, OnPolicyModule
from policies import LoRA, PolicyParams
from rewards import Reward
from rollouts import BatchPlan, SamplingParams

ROOT = Path(__file__).resolve().parents[2]


def sgd(lr: float) -> OptimizerCallable:
    return lambda weights: torch.optim.SGD(weights, lr=lr)


def adamw(lr: float, weight_decay: float = 0.0) -> OptimizerCallable:
    return lambda weights: torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay)


def build(
    model: str,
    rewards: list[Reward],
    method: type[OnPolicyModule] = GRPO,
    *,
    lora: LoRA | None = None,
    packing: bool = True,
    **parts: Any,
) -> Any:
    """`method` on the model in this folder, with a small rollout and SGD at 0.1 unless `parts` say otherwise.

    The small rollout is 4 prompts of 4 completions of at most 8 tokens. `parts` are the constructor's other arguments;
    what neither names has the paper's value.
    """
    small = {
        "batch": BatchPlan(prompts_per_rollout=4, group_size=4),
        "sampling": SamplingParams(max_new_tokens=8),
        "optimizer": sgd(0.1),
    }
    return method(PolicyParams(model, lora=lora, packing=packing), rewards=rewards, **(small | parts))


def sums(levels: Sequence[int] = (1, 2), train_size: int = 64, val_size: int = 8, seed: int = 1) -> ArithmeticPrompts:
    """Sums of one- and two-digit numbers."""
    return ArithmeticPrompts(levels=list(levels), train_size=train_size, val_size=val_size, seed=seed)


def quiet_trainer(
    steps: int = 1,
    callbacks: Sequence[L.Callback] = (),
    *,
    folder: str | Path | None = None,
    validate_every: int | None = None,
    **options: Any,
) -> L.Trainer:
    """A quiet trainer on the CPU that ends after `steps` optimiser steps (-1: never) and saves where a callback does.

    Args:
        folder: the trainer's default_root_dir; the working directory if None, or a temporary folder if that is the
            repository, in which a test leaves nothing.
        validate_every: number of rollouts between two validations; None: no validation.
        options: of the trainer, before the settings here.
    """
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": -1,
        "max_steps": steps,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder or (tempfile.mkdtemp(prefix="run_") if Path.cwd() == ROOT else None),
    }
    if validate_every is not None:
        settings |= {"limit_val_batches": 1.0, "val_check_interval": validate_every, "check_val_every_n_epoch": None}
    return L.Trainer(callbacks=list(callbacks), **(settings | options))


def fit(
    module: L.LightningModule,
    steps: int = 1,
    callbacks: Sequence[L.Callback] = (),
    *,
    data: L.LightningDataModule | None = None,
    seed: int | None = None,
    ckpt_path: str | Path | None = None,
    **options: Any,
) -> L.Trainer:
    """Train with a quiet trainer and return it.

    Args:
        data: prompts or examples; sums of one and two digits if None.
        seed: seeds everything first; None leaves the random state alone.
        ckpt_path: the checkpoint to resume from.
        options: of `quiet_trainer`: folder, validate_every, and any of Lightning's.
    """
    if seed is not None:
        L.seed_everything(seed)
    trainer = quiet_trainer(steps, callbacks, **options)
    trainer.fit(module, datamodule=data or sums(), ckpt_path=ckpt_path)
    return trainer


def weights(module: L.LightningModule) -> Tensor:
    """All weights of the policy's model in one vector, a copy."""
    return torch.cat([weight.detach().flatten() for weight in module.policy.model.parameters()])
