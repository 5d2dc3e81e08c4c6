"""Further parts of the objective: filtering, shaping, entropy bonus, token rewards, several updates, processes."""

import math

import lightning as L
import pytest
import torch

from lightning_modules import KLPenalty, Shaping
from lightning_modules.core import policy_update
from objectives import ClippedSurrogate, GlobalNorm, GroupNorm, ReinforcePlusPlus, TokenMean
from objectives.global_norm import normalised_sum
from objectives.kl import kl_estimate
from rewards import FunctionReward, SoftOverlong
from rollouts import BatchPlan, SamplingParams
from support import processes
from support.errors import ConfigError
from tests.helpers import build, digits, fit, sgd, weights


def nothing(completions):
    return [0.0] * len(completions)


def grpo(model, rewards=None, **parts):
    small = {
        "sampling": SamplingParams(max_new_tokens=12),
        "kl": KLPenalty(),
        "optimizer": sgd(1.0),
        "max_grad_norm": None,
    }
    return build(model, [FunctionReward(digits)] if rewards is None else rewards, **(small | parts))


class Steps(L.Callback):
    """Counts optimiser steps and remembers learning rates."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


def train(module, rollouts=1):
    """The optimiser steps of this many rollouts."""
    steps = Steps()
    fit(module, -1, [steps], max_epochs=1, limit_train_batches=rollouts)
    return steps


def step_of(module):
    module.configure_model()
    before = weights(module)
    train(module)
    return weights(module) - before


def test_truncated_rows_carry_no_loss_but_count_in_their_group(reasoner):
    plain, filtered = (
        grpo(reasoner, aggregation=TokenMean()),
        grpo(reasoner, aggregation=TokenMean(), shaping=Shaping(mask_truncated=True)),
    )
    for module in (plain, filtered):
        module.sampling.max_new_tokens = 20
        train(module)
    batch = filtered.last_rollout
    assert torch.equal(batch.completion_ids, plain.last_rollout.completion_ids)
    assert torch.equal(batch.advantages, plain.last_rollout.advantages), "truncated rows count in the statistics"
    assert 0 < int(batch.truncated.sum()) < len(batch.truncated)
    assert torch.equal(filtered.loss_mask(batch).any(1), ~batch.truncated)
    assert not torch.equal(weights(plain), weights(filtered))


def test_nothing_is_learned_from_truncated_rows_alone(reasoner):
    for shaping in (Shaping(mask_truncated=True), Shaping(truncated_scale=0.0)):
        module = grpo(reasoner, sampling=SamplingParams(max_new_tokens=1), shaping=shaping)
        assert not step_of(module).any()
        assert module.last_rollout.truncated.all()
    assert step_of(grpo(reasoner, sampling=SamplingParams(max_new_tokens=1))).any()


@pytest.mark.parametrize("packing", [True, False])
def test_the_entropy_bonus_has_the_gradient_of_the_mean_entropy(reasoner, packing):
    """Without rewards SGD's step is bonus x the gradient of the mean entropy, here from plain forward passes."""
    module = grpo(
        reasoner,
        rewards=[FunctionReward(nothing)],
        aggregation=TokenMean(),
        shaping=Shaping(entropy_bonus=0.3),
        packing=packing,
    )
    module.configure_model()
    start = {name: p.detach().clone() for name, p in module.policy.model.named_parameters()}
    train(module)
    batch, model = module.last_rollout, module.policy.model
    moved = {name: p.detach() - start[name] for name, p in model.named_parameters()}
    model.load_state_dict(start, strict=False)
    plain = grpo(reasoner, packing=False)
    plain.configure_model()
    total, tokens = 0.0, 0
    for i in range(16):
        prompt, completion = (
            batch.prompt_ids[i // 4][batch.prompt_mask[i // 4]],
            batch.completion_ids[i][batch.completion_mask[i]],
        )
        log = plain.policy.model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total, tokens = total - (log.exp() * log).sum(), tokens + len(completion)
    (0.3 * total / tokens).backward()
    for name, p in plain.policy.model.named_parameters():
        assert torch.allclose(moved[name], p.grad, atol=2e-6), name
    assert max(float(m.abs().max()) for m in moved.values()) > 1e-3


def test_rewards_normalised_one_by_one(reasoner):
    rewards = [FunctionReward(digits), SoftOverlong(12, 8, weight=0.5)]
    module = grpo(reasoner, rewards=rewards, advantage=GlobalNorm(), shaping=Shaping(normalise_rewards=True))
    train(module)
    batch = module.last_rollout
    stacked = torch.stack([batch.rewards["digits"], batch.rewards["soft_overlong"]])
    total = normalised_sum(stacked, torch.tensor([1.0, 0.5]), batch.groups)
    assert torch.allclose(batch.advantages, (total - total.mean()) / (total.std() + 1e-4), atol=1e-5)
    assert torch.equal(batch.rewards["soft_overlong"], ((4 - batch.lengths) / 8).clamp(-1, 0))


def test_the_kl_in_every_tokens_reward(reasoner):
    kl = KLPenalty(0.5, "k1", "token_reward")
    module = grpo(reasoner, advantage=ReinforcePlusPlus(), kl=kl, loss=ClippedSurrogate())
    module.configure_model()
    with torch.no_grad():
        for parameter in module.policy.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    train(module)
    batch = module.last_rollout
    returns = []
    for i, length in enumerate(batch.lengths.tolist()):
        gaps = kl_estimate(batch.behaviour_logprobs[i], batch.reference_logprobs[i], "k1").tolist()
        returns += [float(batch.rewards["digits"][i]) - 0.5 * math.fsum(gaps[t:length]) for t in range(length)]
    returns = torch.tensor(returns)
    expected = (returns - returns.mean()) / returns.std(correction=0)
    assert torch.allclose(batch.advantages[batch.action_mask], expected, atol=1e-4)
    with pytest.raises(ConfigError, match="takes one reward per completion"):
        grpo(reasoner, kl=kl)


def test_epochs_pass_over_the_same_rollout_again(reasoner):
    module = grpo(reasoner, batch=BatchPlan(4, 4, updates_per_rollout=2, epochs=3))
    assert len(train(module, rollouts=2).rates) == 12
    assert "2 update(s) of 8 rows, 3 times" in module.batch.describe()


def test_updates_stop_when_the_policy_has_moved_too_far(reasoner):
    first = grpo(reasoner, batch=BatchPlan(4, 4, epochs=2, kl_stop=1e-9))
    assert len(train(first).rates) == 1 and float(first.trainer.callback_metrics["train/updates"]) == 1
    once, free = grpo(reasoner), grpo(reasoner, batch=BatchPlan(4, 4, epochs=2, kl_stop=100.0))
    train(once)
    assert torch.allclose(weights(first), weights(once), atol=1e-6), (
        "the step that was too much has left nothing behind"
    )
    assert len(train(free).rates) == 2


def test_whether_to_stop_is_decided_over_all_processes(monkeypatch):
    update = object.__new__(policy_update.PolicyUpdate)
    update.plan = BatchPlan(4, 4, epochs=2, kl_stop=0.1)

    def drifted(drift, tokens):
        update.drift = torch.tensor(drift)
        return update._drifted(tokens)

    assert drifted(1.1, 10.0) and not drifted(0.9, 10.0)
    monkeypatch.setattr(policy_update, "summed", lambda values: values + 2.0)  # another process, which went further
    assert drifted(0.9, 20.0) and not drifted(-0.1, 20.0)


@pytest.mark.parametrize(("lr_per", "expected"), [("update", [8.0, 4.0, 2.0, 1.0]), ("rollout", [8.0, 8.0, 4.0, 4.0])])
def test_what_a_learning_rate_schedule_counts(reasoner, lr_per, expected):
    module = grpo(
        reasoner,
        rewards=[FunctionReward(nothing)],
        batch=BatchPlan(4, 4, updates_per_rollout=2, lr_per=lr_per),
        optimizer=lambda p: torch.optim.SGD(p, lr=8.0),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    )
    assert train(module, rollouts=2).rates == expected


def test_weighting_the_kl_acts_on_its_gradient(reasoner):
    """At a ratio of one the value is the same, the gradient is not: it gains k3 times the score."""
    steps = []
    for weighted in (False, True):
        module = grpo(
            reasoner, rewards=[FunctionReward(nothing)], kl=KLPenalty(0.5, "k3", importance_weighted=weighted)
        )
        module.configure_model()
        with torch.no_grad():
            for parameter in module.policy.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        before = weights(module)
        train(module)
        steps.append((weights(module) - before, float(module.trainer.callback_metrics["train/loss"])))
    assert steps[0][1] == pytest.approx(steps[1][1], rel=1e-5) and not torch.allclose(
        steps[0][0], steps[1][0], rtol=0.1
    )


def test_an_advantage_sums_over_processes(reasoner):
    module = grpo(reasoner, advantage=GroupNorm("batch_std"))
    train(module)
    assert module.advantage.reduce is processes.summed  # on two processes: tests/support/test_process_sums.py
    assert set(module.advantage.end_tokens) == {*module.policy.eos_token_ids, module.policy.pad_token_id}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Shaping(truncated_scale=1.5), "between 0 and 1"),
        (lambda: Shaping(entropy_bonus=-1.0), "0 or above"),
        (lambda: KLPenalty(0.1, value_clamp=0.0), "value_clamp"),
        (lambda: KLPenalty(0.1, placement="reward", importance_weighted=True), "acts on the loss only"),
        (lambda: BatchPlan(4, 4, kl_stop=0.1), "several updates"),
        (lambda: SoftOverlong(4, 8), "cache=8"),
        (lambda: BatchPlan(4, 4, epochs=0), "epochs is 0"),
    ],
)
def test_mistakes_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()
    KLPenalty(0.1, "k1", "loss", importance_weighted=True)
    KLPenalty(0.1, "k1+", "loss")


class KLSeen(L.Callback):
    """The metrics that a controller reads after each rollout."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, *_):
        self.values.append(trainer.callback_metrics.get("train/kl"))


def test_a_rollout_that_taught_nothing_shows_no_earlier_kl(reasoner, monkeypatch):
    """Neither a controller nor a resumed run may take the KL of another rollout for this one's."""
    module, seen = grpo(reasoner, kl=KLPenalty(0.1)), KLSeen()
    masks = iter([True, False, True])
    plain = module.loss_mask
    monkeypatch.setattr(module, "loss_mask", lambda batch: plain(batch) & next(masks))
    fit(module, 3, [seen])
    first, second, third = seen.values
    assert float(first) >= 0 and second is None and float(third) > 0
