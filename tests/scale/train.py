"""Five optimiser steps on one or two processes; the first writes the final weights and every metric."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from callbacks import ReferenceReset, RolloutCheckpoint
from datamodules import (
    ArithmeticPrompts,
    Demonstrations,
    LabelledResponses,
    PairSource,
    PreferencePairs,
    RecordsPrompts,
)
from lightning_modules import GRPO, HCRLHF, SFT, AdaptThink, AutoThink, Constraint, Evaluation, KLPenalty, Preference
from objectives import DPO, KTO
from policies import LoRA, PolicyParams
from rewards import ExactAnswer, FunctionReward, RecordsCost, RecordsReward
from rollouts import BatchPlan, SamplingParams
from tests.helpers import ROOT, digits


class Metrics(L.Callback):
    def __init__(self):
        self.rows, self.versions = [], []

    def _note(self, trainer):
        self.rows.append(
            {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("perf/")}
        )

    def on_train_batch_start(self, trainer, pl_module, *given):
        with pl_module.whole_weights():
            self.versions.append(pl_module.policy.version)

    def on_train_batch_end(self, trainer, *given):
        self._note(trainer)

    def on_validation_end(self, trainer, *given):
        self._note(trainer)


def made(method, model):
    given = {
        "batch": BatchPlan(4, 4), "sampling": SamplingParams(max_new_tokens=10), "evaluation": Evaluation(samples=2),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.3), "kl": KLPenalty(coefficient=0.05),
    }  # fmt: skip
    if method == "hc_rlhf":
        rules = {
            "rewards": [RecordsReward()],
            "cost": RecordsCost(),
            "constraint": Constraint(threshold=0.99, window=32),
        }
        given["kl"] = KLPenalty(coefficient=0.05, estimator="k1", placement="reward")
        return HCRLHF(PolicyParams(model), **rules, **given), RecordsPrompts(
            train_size=24, val_size=7, safety_size=20, seed=1
        )
    if method == "sft":
        return SFT(PolicyParams(model), optimizer=given["optimizer"]), Demonstrations(
            "arithmetic", batch_size=8, train_size=64, val_size=7, seed=1
        )
    if method in ("dpo", "kto"):
        pairs = PairSource(str(ROOT / "assets/preferences/records.parquet"), limit=120)
        loss, kind = (DPO(), PreferencePairs) if method == "dpo" else (KTO(), LabelledResponses)
        module = Preference(PolicyParams(model), loss=loss, optimizer=given["optimizer"])
        return module, kind(pairs, batch_size=8, seed=1)
    if method in ("adapt_think", "auto_think"):
        kind = {"adapt_think": AdaptThink, "auto_think": AutoThink}[method]
        return kind(PolicyParams(model), [ExactAnswer(), FunctionReward(digits)], **given), ArithmeticPrompts(
            [1, 2], 24, 7, seed=1
        )
    lora = LoRA(r=4, alpha=8) if "lora" in method else None
    module = GRPO(PolicyParams(model, lora=lora), [FunctionReward(digits)], **given)
    return module, ArithmeticPrompts(levels=[1, 2], train_size=24, val_size=7, seed=1)


def strategy_of(name):
    if name == "fsdp2":
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
    return "ddp" if name == "ddp" else "auto"


def main(method, strategy, model, folder, checkpoint=None):
    torch.set_num_threads(1)
    L.seed_everything(0)
    module, data = made(method, model)
    metrics = Metrics()
    saving = (
        [] if checkpoint else [RolloutCheckpoint(every_n_rollouts=2, keep=None, folder=f"{folder}/{method}_{strategy}")]
    )
    resets = [] if method == "sft" else [ReferenceReset(every_n_rollouts=3)]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "one" else 2,
        strategy=strategy_of(strategy),
        use_distributed_sampler=False,
        max_epochs=-1,
        max_steps=5,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=bool(saving),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*resets, metrics, *saving],
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    assert len(set(metrics.versions)) == len(metrics.versions), (
        "an engine with copies of the weights would not see an update"
    )
    with module.whole_weights():
        # What is whole, and a full model's reference, which stays in shards.
        parts = [p.detach() for p in module.policy.parameters()]
        weights = torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).flatten() for p in parts])
    if trainer.is_global_zero:
        torch.save(
            {"weights": weights, "metrics": metrics.rows},
            Path(folder) / f"{method}_{strategy}{'_resumed' if checkpoint else ''}.pt",
        )
