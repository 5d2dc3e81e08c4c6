"""A run ends with the rollout that reaches its token budget, counted from the completions; so does a resumed run."""

import lightning as L
import pytest
import torch

from callbacks import RolloutCheckpoint, TokenBudget
from datamodules import ArithmeticPrompts, Demonstrations
from lightning_modules import GRPO, SFT, Evaluation
from policies import PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError


def brevity(completions, **columns):
    return [-float(len(text)) for text in completions]


class Judge(FunctionReward):
    """So that dynamic sampling has groups to replace."""

    is_correctness = True


def seldom(completions, **columns):
    return [float(len(text) % 5 == 0) for text in completions]


class Count(L.Callback):
    """Tokens of every rollout, by the text's own end: what stands before the padding."""

    def __init__(self):
        self.rollouts, self.logged, self.validations = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        sampled = pl_module.last_sampled
        self.rollouts.append(int((sampled.completion_mask).sum()))
        self.logged.append(int(trainer.callback_metrics["train/tokens"]))

    def on_validation_end(self, trainer, pl_module):
        self.validations.append(trainer.fit_loop.epoch_loop.total_batch_idx + 1)


def run(model, folder, tokens, reward=brevity, refill=0.0, updates=1, **fit):
    L.seed_everything(0)
    short = SamplingParams(max_new_tokens=6)
    module = GRPO(
        PolicyParams(model), [Judge(reward)], BatchPlan(4, 4, updates_per_rollout=updates, refill=refill), short,
        evaluation=Evaluation(sampling=short), optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
    )  # fmt: skip
    count = Count()
    trainer = L.Trainer(
        max_steps=-1, max_epochs=-1, logger=False, accelerator="cpu", enable_progress_bar=False, num_sanity_val_steps=0, check_val_every_n_epoch=None,
        val_check_interval=3, callbacks=[TokenBudget(tokens), count, RolloutCheckpoint(every_n_rollouts=1, keep=None)], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=ArithmeticPrompts(train_size=64, val_size=8), **fit)
    return module, count


def sums(values):
    return [sum(values[: n + 1]) for n in range(len(values))]


@pytest.mark.parametrize("refill", [0.0, 1.0])
def test_the_run_ends_with_the_rollout_that_reaches_the_budget(reasoner, tmp_path, refill):
    module, count = run(reasoner, tmp_path, 400, seldom, refill)
    totals = sums(count.rollouts)
    assert count.logged == totals and module.generated_tokens == totals[-1]
    assert totals[-2] < 400 <= totals[-1]
    assert count.validations[-1] == len(totals), "a last validation"
    if refill:
        assert max(count.rollouts) > 16 * 6, "what dynamic sampling leaves out counts too"


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(reasoner, tmp_path):
    whole, count = run(reasoner, tmp_path, 400, updates=2)
    folder = tmp_path / "local/checkpoints"
    for done in (1, len(count.rollouts) - 1):
        resumed, rest = run(
            reasoner, tmp_path / f"{done}", 400, updates=2, ckpt_path=folder / f"rollout_{done:06d}.ckpt"
        )
        assert rest.rollouts == count.rollouts[done:] and rest.logged == count.logged[done:]
        assert all(
            torch.equal(a, b) for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True)
        )
    _, nothing = run(
        reasoner, tmp_path / "over", 400, updates=2, ckpt_path=folder / f"rollout_{len(count.rollouts):06d}.ckpt"
    )
    assert nothing.rollouts == [], "the budget had been reached"


def test_mistakes(reasoner, tmp_path):
    with pytest.raises(ConfigError, match="tokens is 0"):
        TokenBudget(0)
    trainer = L.Trainer(
        max_steps=1, logger=False, accelerator="cpu", callbacks=[TokenBudget(9)], default_root_dir=tmp_path
    )
    with pytest.raises(ConfigError, match="SFT generates none"):
        trainer.fit(SFT(PolicyParams(reasoner)), datamodule=Demonstrations("arithmetic", train_size=8, val_size=4))
