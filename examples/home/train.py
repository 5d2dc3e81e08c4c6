"""Two methods in one ordinary Lightning script: python train.py --rollouts 40"""

import argparse

import lightning as L
import torch
from sums.data import Till
from sums.rewards import close
from sums.watch import Diary, StopWhenSolved

from callbacks import ExportPolicy
from lightning_modules import GRPO, AdaptThink, Evaluation, Reference
from policies import PolicyParams
from rewards import ExactAnswer, FunctionReward
from rollouts import BatchPlan, SamplingParams


def fit(module: L.LightningModule, data: Till, rollouts: int, callbacks: list[L.Callback]) -> None:
    trainer = L.Trainer(
        max_steps=rollouts,
        max_epochs=-1,
        val_check_interval=min(rollouts, 10),
        check_val_every_n_epoch=None,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(module, datamodule=data)
    reward = float(trainer.callback_metrics["val/reward"])
    print(f"{type(module).__name__}: val/reward {reward:.3f} after {trainer.global_step} rollouts")


def main(rollouts: int = 40, prompts: int = 64) -> None:
    L.seed_everything(0)
    data = Till(train_size=prompts, val_size=prompts // 2)
    common = {
        "batch": BatchPlan(prompts_per_rollout=8, group_size=8),
        "sampling": SamplingParams(max_new_tokens=72),
        "evaluation": Evaluation(sampling=SamplingParams(max_new_tokens=72)),
        "optimizer": lambda weights: torch.optim.AdamW(weights, lr=3e-4),
    }
    # This model is part of the distribution; a folder or a hub id works as well.
    grpo = GRPO(policy=PolicyParams("assets/tiny_reasoner"), rewards=[FunctionReward(close)], **common)
    fit(grpo, data, rollouts, [Diary("grpo.jsonl"), StopWhenSolved(), ExportPolicy("my_policy")])

    # AdaptThink answers at once where that costs no accuracy, so its reward must judge right or wrong.
    adapt_think = AdaptThink(
        policy=PolicyParams("assets/tiny_switcher"), rewards=[ExactAnswer()], reference=Reference(samples=4), **common
    )
    fit(adapt_think, data, rollouts, [Diary("adapt_think.jsonl")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=64)
    main(**vars(parser.parse_args()))
