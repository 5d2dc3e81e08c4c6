"""Every method: unscored completions, the learning rate's steps, the count of tokens, the KL of forced tokens."""

import lightning as L
import pytest
import torch

from lightning_modules import KLPenalty, Shaping
from rewards import Reward
from rollouts import BatchPlan, EmbeddedEngine
from tests.helpers import fit, sgd, sums
from tests.lightning_modules.two_processes_methods import cases

NAMES = ["grpo", "s_grpo", "t_spmo", "prorl", "still3", "adapt_think", "auto_think", "self_verify", "ppo"]


class Counting(EmbeddedEngine):
    """Counts the tokens that it samples once training has begun."""

    def __init__(self):
        super().__init__()
        self.tokens, self.counts = 0, False

    def generate(self, *arguments, **options):
        batch = super().generate(*arguments, **options)
        self.tokens += int(batch.action_mask.sum()) * self.counts
        return batch


class Rollouts(L.Callback):
    """Every rollout with its advantages, skipped updates and learning rate."""

    def __init__(self):
        self.batches, self.skipped, self.rates, self.drawn = [], [], [], 0

    def on_train_start(self, trainer, pl_module):
        if isinstance(pl_module.engine, Counting):
            pl_module.engine.counts = True

    def on_train_batch_end(self, trainer, pl_module, *others):
        self.batches.append(pl_module.last_rollout)
        self.skipped.append(float(trainer.callback_metrics["train/skipped_updates"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        first = pl_module.last_sampled.own_first
        self.drawn += 0 if first is None else int(first.sum())


class Constant(Reward):
    """The same score for every completion, all of them wrong."""

    is_correctness = True

    def score(self, batch):
        return [0.0] * len(batch.completions)


class Unscored(Reward):
    """A judge that fails or abstains for completions of some groups, or for all."""

    is_correctness = may_abstain = True

    def __init__(self, everything):
        super().__init__()
        self.everything = everything

    def score(self, batch):
        odd = [len(text) % 2 for text in batch.completions]
        return [float("nan") if self.everything or row % 3 == 0 else float(odd[row]) for row in range(len(odd))]


def trained(name, model, steps, **changes):
    """(module, what was seen) after some optimiser steps of a case of the matrix on two processes, with changes."""
    module, seen = cases(model, **changes)[name]()[0], Rollouts()
    fit(module, steps, [seen], data=sums(train_size=24), seed=1)
    return module, seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("everything", [False, True])
def test_an_unscored_completion_gets_no_advantage_and_harms_no_other(reasoner, name, everything):
    module, seen = trained(name, reasoner, 4, rewards=[Unscored(everything)], shaping=Shaping())
    assert seen.skipped == [0.0] * 2, "an update was not finite"
    for batch in seen.batches:
        unscored = module.returns(batch).isnan()
        assert unscored.any() and batch.advantages.isfinite().all() and (batch.advantages[unscored] == 0).all()
    learned = sum(float(batch.advantages.abs().sum()) for batch in seen.batches)
    if name == "self_verify":  # verdicts are scored whatever the judge does
        assert learned > 0 or everything
    else:
        assert (learned > 0) != everything


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr_per", ["update", "rollout"])
def test_the_learning_rate_steps_and_tokens_count_whether_or_not_there_is_a_gradient(reasoner, name, lr_per):
    """With constant rewards some methods have nothing to learn from, T-SPMO no edges."""
    plan = BatchPlan(4, 4, epochs=2, lr_per=lr_per)
    halving = {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)}
    engine = Counting()
    module, seen = trained(name, reasoner, 6, rewards=[Constant()], batch=plan, engine=engine, **halving)
    falls = 2 if lr_per == "update" else 1
    assert seen.rates == [pytest.approx(0.3 * 0.5 ** (falls * n)) for n in (1, 2, 3)]
    assert module.generated_tokens == engine.tokens + seen.drawn


@pytest.mark.parametrize("kl", [KLPenalty(0.1, "k1", "reward"), KLPenalty(0.1)])
def test_the_kl_of_tokens_that_the_method_drew_is_that_of_the_policy(reasoner, kl):
    """At the first rollout the policy is the reference; the distribution that drew the first tokens is neither."""
    plan = BatchPlan(4, 4, epochs=2, kl_stop=1e-3)
    module = cases(reasoner, kl=kl, batch=plan, optimizer=sgd(1e-6))["adapt_think"]()[0]
    module.configure_model()
    found = []

    class First(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *others):
            found.append((float(pl_module.sequence_kl(pl_module.last_rollout).abs().max()), trainer.global_step))

    fit(module, 4, [First()], data=sums(train_size=24), seed=1)
    assert found[0][0] < 1e-4, "the KL of the first rollout"
    assert [steps for _, steps in found] == [2, 4], "kl_stop ended an update of a policy that had not moved"
