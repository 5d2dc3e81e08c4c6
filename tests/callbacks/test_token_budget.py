"""A run ends with the rollout that reaches its token budget, counted from the completions; so does a resumed run."""

import lightning as L
import pytest
import torch

from callbacks import RolloutCheckpoint, TokenBudget
from datamodules import ArithmeticPrompts, Demonstrations
from lightning_modules import SFT, Evaluation
from policies import PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import adamw, brevity, build, fit


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


def run(model, folder, tokens, reward=brevity, refill=0.0, updates=1, ckpt_path=None):
    short = SamplingParams(max_new_tokens=6)
    module = build(
        model,
        [Judge(reward)],
        batch=BatchPlan(prompts_per_rollout=4, group_size=4, updates_per_rollout=updates, refill=refill),
        sampling=short,
        evaluation=Evaluation(sampling=short),
        optimizer=adamw(3e-3),
    )
    count = Count()
    callbacks = [TokenBudget(tokens), count, RolloutCheckpoint(every_n_rollouts=1, keep=None)]
    data = ArithmeticPrompts(train_size=64, val_size=8)
    fit(module, -1, callbacks, data=data, folder=folder, seed=0, validate_every=3, ckpt_path=ckpt_path)
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
    data = Demonstrations("arithmetic", train_size=8, val_size=4)
    with pytest.raises(ConfigError, match="SFT generates none"):
        fit(SFT(PolicyParams(reasoner)), 1, [TokenBudget(9)], data=data, folder=tmp_path)
