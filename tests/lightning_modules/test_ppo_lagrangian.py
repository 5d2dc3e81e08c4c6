"""PPO-Lagrangian: two critics, the advantage by hand, a KL that does not depend on lambda, the multiplier's steps."""

import math

import pytest
import torch

from datamodules import RecordsPrompts
from lightning_modules import Constraint, Critic, KLPenalty, PPOLagrangian
from objectives import GAE
from rewards import RecordsCost, RecordsReward
from rollouts import BatchPlan, SamplingParams
from tests.helpers import adamw, build, fit

SHORT = SamplingParams(max_new_tokens=6)


def lagrangian(model, **parts):
    settings = {
        "constraint": Constraint(threshold=0.1, c1=0.0, c2=0.0, window=128, lambda_init=2.0, lambda_lr=0.5),
        "cost": RecordsCost(), "critic": Critic(lr=1e-2), "batch": BatchPlan(4, 2), "sampling": SHORT,
        "optimizer": adamw(1e-3), "kl": KLPenalty(),
    } | parts  # fmt: skip
    return build(model, [RecordsReward()], PPOLagrangian, **settings)


def train(module, folder, steps=2):
    return fit(module, steps, data=RecordsPrompts(32, 8, 30, seed=5), folder=folder, seed=0)


@pytest.mark.parametrize("body", ["own", "shared"])
def test_each_critic_predicts_its_own_and_the_advantage_weighs_them_by_lambda(assistant, tmp_path, body):
    critic = Critic(body, lr=1e-2, value_clip=None)
    module = lagrangian(assistant, advantage=GAE(lam=1.0, normalise=False), critic=critic)
    trainer = train(module, tmp_path, steps=3)
    batch, mask = module.last_rollout, module.last_rollout.action_mask
    reward, cost = (batch.rewards[name][:, None].expand(mask.shape) for name in ("records_reward", "cost"))
    of_reward, of_cost = reward - batch.values[..., 0], cost - batch.values[..., 1]
    factor = module.pessimism.multiplier
    assert torch.allclose(batch.advantages[mask], ((of_reward - factor * of_cost) / (1 + factor))[mask], atol=1e-5)
    assert torch.allclose(batch.value_targets[..., 0][mask], reward[mask], atol=1e-5)
    assert torch.allclose(batch.value_targets[..., 1][mask], cost[mask], atol=1e-5)
    assert not torch.allclose(batch.values[..., 0][mask], batch.values[..., 1][mask], atol=1e-3)
    logged = trainer.callback_metrics
    assert float(logged["train/value_target"]) == pytest.approx(float(reward[mask].mean()), abs=1e-5)
    assert float(logged["train/cost_value_target"]) == pytest.approx(float(cost[mask].mean()), abs=1e-5)
    assert module.verdict is None and not (tmp_path / "local").exists(), "nothing is certified"


def test_the_kl_weighs_the_same_whatever_lambda_is(assistant, tmp_path, monkeypatch):
    """Without values and with GAE's lambda 1, the KL's part of the advantage is -beta times the KL to come."""
    parts = {}
    for factor in (0.5, 4.0):
        module = lagrangian(
            assistant,
            constraint=Constraint(threshold=0.1, c1=0.0, c2=0.0, lambda_init=factor, lambda_lr=0.0),
            advantage=GAE(lam=1.0, normalise=False),
            kl=KLPenalty(0.3, "k1", "token_reward"),
            critic=Critic(lr=0.0),
        )
        monkeypatch.setattr(module, "token_kl", lambda batch: 0.1 * batch.action_mask)
        train(module, tmp_path, steps=1)
        batch, mask = module.last_rollout, module.last_rollout.action_mask
        scores = (batch.rewards["records_reward"] - factor * batch.rewards["cost"]) / (1 + factor)
        to_come = 0.1 * mask.flip(1).cumsum(1).flip(1)
        parts[factor] = (batch.advantages - scores[:, None])[mask]
        assert torch.allclose(parts[factor], -0.3 * to_come[mask], atol=1e-5)
    assert torch.allclose(parts[0.5], parts[4.0], atol=1e-5)


def test_the_multiplier_ascends_in_log_space_on_the_mean_cost(assistant, tmp_path):
    module = lagrangian(assistant)
    train(module, tmp_path, steps=1)
    mean = float(module.last_rollout.rewards["cost"].mean())
    assert module.pessimism.kappa == 0 and module.pessimism.bound == pytest.approx(mean)
    assert module.dual.value == pytest.approx(math.exp(math.log(2.0) + 0.5 * 2.0 * (mean - 0.1)))
