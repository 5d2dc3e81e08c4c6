"""Run by test_two_processes.py: three rollouts on two processes, each of which writes what it found."""

from pathlib import Path

import lightning as L
import torch

from callbacks import Curriculum, DifficultyLedger
from datamodules import ArithmeticPrompts
from lightning_modules import GRPO, KLPenalty, Shaping
from objectives import GroupNorm, TokenMean
from policies import PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from tests.helpers import digits


class Found(L.Callback):
    """Rewards, advantages and weights after every rollout."""

    def __init__(self):
        self.rollouts = []

    def on_train_batch_end(self, trainer, pl_module, *given):
        batch = pl_module.last_rollout
        weights = torch.cat([p.detach().flatten() for p in pl_module.policy.model.parameters()])
        steps = float(trainer.callback_metrics["train/updates"])
        ids = [row["id"] for row in batch.rows]
        level = int(trainer.callback_metrics["train/curriculum_level"])
        self.rollouts.append(
            {
                "level": level,
                "ids": ids,
                "rewards": pl_module.returns(batch),
                "advantages": batch.advantages,
                "weights": weights,
                "steps": steps,
            }
        )


def main(model, folder):
    torch.set_num_threads(1)
    L.seed_everything(0)
    module = GRPO(
        PolicyParams(model),
        [FunctionReward(digits)],
        batch=BatchPlan(4, 4, updates_per_rollout=2, epochs=3, kl_stop=1e-3),
        sampling=SamplingParams(max_new_tokens=12),
        kl=KLPenalty(),
        advantage=GroupNorm("batch_std"),
        aggregation=TokenMean(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.3),
        shaping=Shaping(entropy_bonus=0.01),
    )
    found, ledger = Found(), DifficultyLedger("digits")
    moving = Curriculum(raise_at=-0.1, lower_at=-0.2, window=1)  # up after the first rollout
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, max_epochs=1,
        default_root_dir=folder,
        limit_train_batches=3, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ledger, moving, found],
    )  # fmt: skip
    trainer.fit(module, datamodule=ArithmeticPrompts(levels=[1, 2], train_size=64, val_size=8, seed=1))
    found.rollouts[-1]["ledger"] = ledger.rates.state_dict()
    torch.save(found.rollouts, Path(folder) / f"{trainer.global_rank}.pt")
