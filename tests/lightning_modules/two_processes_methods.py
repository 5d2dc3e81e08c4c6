"""Run by test_two_processes.py: every method for a few rollouts, on one process or on two, several in one launch.

Each case has a token budget that makes unequal passes, a KL term where the method takes one, completions that a reward
abstains from, and completions for which a scorer fails.
"""

from pathlib import Path

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from callbacks import OneShot
from datamodules import ArithmeticPrompts
from environments import ThinkerDialogue, TurnBudgets, TurnPrompts
from lightning_modules import (
    GRPO,
    PPO,
    SGRPO,
    TSPMO,
    AdaptThink,
    AutoThink,
    Critic,
    Evaluation,
    KLPenalty,
    ProRL,
    Reference,
    SelfVerify,
    Shaping,
    Still3,
    Thinker,
    core,
)
from policies import LoRA, PolicyParams
from rewards import FunctionReward, Guarded, Reward, TurnRewards
from rollouts import BatchPlan, SamplingParams
from tests.helpers import adamw, digits, sgd
from tests.helpers.talks import Chat, Sometimes
from tests.scale import train

#: methods without rollouts
OFFLINE = ("sft", "dpo", "kto")


class Parity(Reward):
    """Right if the text has an odd number of characters; does not apply to one completion in five."""

    is_correctness = may_abstain = True

    def score(self, batch):
        return [float("nan") if len(text) % 5 == 0 else float(len(text) % 2) for text in batch.completions]


def fragile(completions):
    if len(completions[0]) % 7 == 3:
        raise RuntimeError("no score")
    return [len(completions[0]) % 3 / 2]


class Seldom(Reward):
    """Digits for a part of the prompts, in every second rollout: some processes, or all, have no row with signal."""

    def __init__(self):
        super().__init__()
        self.rollouts = 0

    def score(self, batch):
        told = [
            self.rollouts % 2 == 0 and sum(map(ord, row["id"])) % 16 in (4, 7)
            for row in batch.rows
            for _ in range(batch.group_size)
        ]
        return [value * one for value, one in zip(digits(batch.completions), told, strict=True)]

    def observe(self, batch):
        self.rollouts += 1


class Found(L.Callback):
    """Metrics of every rollout and validation, and whether a process had passes that keep the number equal."""

    def __init__(self):
        self.metrics, self.fillers = [], 0

    def _note(self, trainer):
        shown = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.metrics.append({name: value for name, value in shown.items() if not name.startswith("perf/")})

    def on_train_batch_end(self, trainer, *others):
        self._note(trainer)

    def on_validation_end(self, trainer, *others):
        self._note(trainer)


def settings(**changes):
    return {
        "rewards": [Parity(), FunctionReward(digits), Guarded(FunctionReward(fragile), max_failure_rate=1.0)],
        "batch": BatchPlan(4, 4, update_token_budget=56, epochs=2),
        "sampling": SamplingParams(max_new_tokens=12),
        "evaluation": Evaluation(samples=2),
        "optimizer": sgd(0.3),
        "kl": KLPenalty(coefficient=0.05),
    } | changes


def prompts():
    return ArithmeticPrompts([1, 2], 24, 5, seed=1)


def cases(model, **changes):
    """Name -> (module, further callbacks), made when it is called; `changes` go before a case's own settings."""

    def parts(**own):
        return settings(**(own | changes))

    plain = PolicyParams(model)
    adapters = PolicyParams(model, lora=LoRA(r=4, alpha=8))
    two_updates = BatchPlan(8, 4, update_token_budget=56, updates_per_rollout=2)
    in_reward = KLPenalty(coefficient=0.05, estimator="k1", placement="reward")
    in_tokens = KLPenalty(coefficient=0.05, estimator="k1", placement="token_reward")
    without_kl = {key: value for key, value in parts().items() if key != "kl"}
    copies = BatchPlan(8, 4, update_token_budget=56)
    conversations = {
        "environment": Chat(waits=True),
        "sampling": SamplingParams(max_new_tokens=60),
        "shaping": Shaping(credit="turn"),
        "rewards": [TurnRewards(), *settings()["rewards"]],
    }
    short = TurnPrompts("<answer>?", "No.", "Short?")
    dialogues = {
        "environment": ThinkerDialogue(Sometimes(), TurnBudgets(12, 12, 12, 12), short),
        "sampling": SamplingParams(max_new_tokens=120),
        "rewards": settings()["rewards"][1:],
    }
    return {
        "grpo": lambda: (GRPO(plain, **parts()), []),
        "grpo, two updates": lambda: (GRPO(plain, **parts(batch=two_updates)), []),
        "grpo, adapters": lambda: (GRPO(adapters, **parts(kl=in_reward)), []),
        "one_shot": lambda: (GRPO(plain, **parts(batch=copies)), [OneShot(ids=[prompts().rows("train")[3]["id"]])]),
        "s_grpo": lambda: (SGRPO(plain, cutoff=2, share=0.4, **parts()), []),
        "t_spmo": lambda: (TSPMO(adapters, **without_kl), []),
        "prorl": lambda: (ProRL(plain, **parts()), []),
        "still3": lambda: (Still3(plain, select="responses", **parts()), []),
        "adapt_think": lambda: (AdaptThink(plain, reference=Reference(samples=2), **parts(kl=in_reward)), []),
        "auto_think": lambda: (AutoThink(plain, stage=3, **parts()), []),
        "self_verify": lambda: (SelfVerify(plain, **parts(batch=two_updates)), []),
        "ppo": lambda: (PPO(plain, critic=Critic(lr=0.3), **parts(kl=in_tokens)), []),
        "ppo, shared": lambda: (PPO(plain, critic=Critic("shared", lr=0.3, warmup_rollouts=1), **parts()), []),
        "thinker": lambda: (Thinker(plain, **parts(**dialogues)), []),
        "turns": lambda: (GRPO(plain, **parts(**conversations)), []),
        "no_signal": lambda: (
            GRPO(plain, **parts(rewards=[Seldom()], kl=KLPenalty(0.0), optimizer=adamw(1e-3, 0.1))), [],
        ),
    }  # fmt: skip


def fit(name, strategy, model, folder, steps=6):
    """Train one case. Returns its final weights, metrics and number of filling passes."""
    L.seed_everything(0, verbose=False)
    if name in (*OFFLINE, "hc_rlhf"):
        (module, data), further = train.made(name, model), []
    else:
        module, further = cases(model)[name]()
        data = prompts()
    found, passes = Found(), core.policy_update.micro_batches

    def counted(*arguments, **options):
        micros = passes(*arguments, **options)
        found.fillers += sum(not bool(micro.counted.all()) for micro in micros)
        return micros

    core.policy_update.micro_batches = counted
    trainer = L.Trainer(
        accelerator="cpu", devices=1 if strategy == "one" else 2, strategy=train.strategy_of(strategy),
        use_distributed_sampler=False, max_epochs=-1, max_steps=steps, val_check_interval=2,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[*further, found],
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=data)
    finally:
        core.policy_update.micro_batches = passes
    with module.whole_weights():  # they are whole within it only
        parts = [weight.detach() for weight in module.trained_parameters()]
        weights = torch.cat([(part.full_tensor() if isinstance(part, DTensor) else part).flatten() for part in parts])
    return {"weights": weights, "metrics": found.metrics, "fillers": found.fillers}


def main(names, strategy, models, folder, steps=6):
    torch.set_num_threads(1)
    for name in names:
        found = fit(name, strategy, models[name in ("dpo", "kto", "hc_rlhf")], folder, steps)
        rank = torch.distributed.get_rank() if strategy != "one" else 0
        torch.save(found, Path(folder) / f"{name} {strategy} {rank}.pt")
