"""Run by test_two_processes.py: a reward that fails on one of two processes only."""

import lightning as L
import torch

from datamodules import ArithmeticPrompts
from lightning_modules import GRPO
from policies import PolicyParams
from rewards import FunctionReward, Guarded
from rollouts import BatchPlan, SamplingParams


def main(model):
    torch.set_num_threads(1)
    L.seed_everything(0)
    calls = []

    def judge(completions):
        calls.append(completions)
        if len(calls) > 8 and module.global_rank == 1:  # eight completions per rollout and process
            raise RuntimeError("ill")
        return [float(len(completions[0]) % 3)]

    module = GRPO(
        PolicyParams(model),
        [Guarded(FunctionReward(judge, name="judge"), max_failure_rate=0.4)],
        batch=BatchPlan(4, 4),
        sampling=SamplingParams(max_new_tokens=4),
    )
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=1,
        limit_train_batches=3, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=ArithmeticPrompts(levels=[1], train_size=64, val_size=8, seed=1))
