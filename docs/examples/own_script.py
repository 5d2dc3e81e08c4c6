"""GRPO and HC-RLHF in somebody's own Lightning script: no command line, no configuration files."""

import lightning as L
import torch

from datamodules import ArithmeticPrompts, PairSource, RecordsPrompts
from lightning_modules import GRPO, HCRLHF, Constraint, Evaluation, ScorerTraining
from policies import PolicyParams
from rewards import ExactAnswer, FunctionReward
from rollouts import BatchPlan, SamplingParams


def brevity(completions, **columns):
    return [-len(text) / 100 for text in completions]


def main(
    rollouts: int = 20,
    reasoner: str = "assets/tiny_reasoner",
    assistant: str = "assets/tiny_assistant",
    pairs: int = 4000,
) -> None:
    L.seed_everything(0)
    shared = {"optimizer": lambda p: torch.optim.AdamW(p, lr=3e-4), "batch": BatchPlan(8, 4)}
    short = SamplingParams(max_new_tokens=72)
    grpo = GRPO(
        PolicyParams(reasoner),
        [ExactAnswer(), FunctionReward(brevity)],
        sampling=short,
        evaluation=Evaluation(sampling=short),
        **shared,
    )
    L.Trainer(max_steps=rollouts, max_epochs=-1, logger=False, limit_val_batches=1).fit(
        grpo, datamodule=ArithmeticPrompts()
    )

    safe = HCRLHF(
        PolicyParams(assistant),
        constraint=Constraint(threshold=0.15, cost_scale="probability"),
        scorers=ScorerTraining(lr=5e-4, epochs=1, batch_size=32),
        sampling=SamplingParams(max_new_tokens=20),
        **shared,
    )
    data = RecordsPrompts(safety_size=200, preferences=PairSource("assets/preferences/records.parquet", limit=pairs))
    L.Trainer(max_steps=rollouts, max_epochs=-1, logger=False, limit_val_batches=0).fit(safe, datamodule=data)


if __name__ == "__main__":
    main()
