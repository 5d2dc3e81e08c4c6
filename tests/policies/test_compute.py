"""The precision of matrix products: what auto measures, what bfloat16 rounds, and how often weights are cast."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cli.plan_report import precision
from lightning_modules import GRPO, KLPenalty
from lightning_modules.core.optimizer_steps import Steps
from policies import Policy, PolicyParams, PromptGroups, Scorer, compute
from policies.compute import Probe
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import adamw, digits, fit, weights


def groups_of(policy):
    return PromptGroups.of([[5, 6, 7], [8, 9]], [[10, 11, 12], [13, 14]], policy.pad_token_id, policy.device)


def grpo(model, choice="float32", **parts):
    settings = {
        "batch": BatchPlan(4, 4, updates_per_rollout=2, update_token_budget=60),
        "sampling": SamplingParams(max_new_tokens=8),
        "optimizer": adamw(1e-2),
        "kl": KLPenalty(0.0),
    }
    return GRPO(PolicyParams(model, compute=choice), [FunctionReward(digits)], **(settings | parts))


@pytest.mark.parametrize(("fast", "slow"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_auto_takes_the_precision_whose_products_are_faster(reasoner, monkeypatch, fast, slow):
    """On a clock that products alone advance."""
    now = [0.0]

    def product(states, weight):
        now[0] += 1e-3 if weight.dtype == getattr(torch, fast) else 4e-3
        return states @ weight.T

    monkeypatch.setattr(compute, "linear", product)
    monkeypatch.setattr(compute.time, "process_time", lambda: now[0])
    policy = Policy(PolicyParams(reasoner, compute="auto"))
    assert policy.compute == policy.compute_probe.choice == fast
    assert getattr(policy.compute_probe, slow) == pytest.approx(4 * getattr(policy.compute_probe, fast))
    assert precision(policy.params) == [f"{fast}, policy.compute auto", str(policy.compute_probe)], "in the plan"
    assert Policy(PolicyParams(reasoner)).compute_probe is None, "the default measures nothing"
    assert Probe(1.2, 1.0).choice == "float32", "a small gain is lost around the products"


def test_bfloat16_rounds_the_products_and_nothing_else(reasoner):
    exact, rounded = Policy(PolicyParams(reasoner)), Policy(PolicyParams(reasoner, compute="bfloat16"))
    groups = groups_of(exact)
    with torch.autocast("cpu", torch.bfloat16):
        expected = exact.logprobs(groups)[0]
    values = rounded.logprobs(groups)[0]
    plain = exact.logprobs(groups)[0].detach()
    assert torch.equal(values, expected) and values.dtype == torch.float32
    assert 0 < float((values.detach() - plain).abs().max()) < 0.05
    values.sum().backward()
    trained = [p for p in rounded.model.parameters() if p.grad is not None]
    assert trained and all(p.dtype == p.grad.dtype == torch.float32 for p in trained)


class Casts(TorchDispatchMode):
    """Counts the casts of one tensor to bfloat16."""

    def __init__(self, tensor):
        super().__init__()
        self.pointer, self.count = tensor.data_ptr(), 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is torch.ops.aten._to_copy.default and options.get("dtype") == torch.bfloat16:
            self.count += arguments[0].data_ptr() == self.pointer
        return function(*arguments, **options)


def test_weights_are_cast_once_per_rollout_and_once_per_update(reasoner):
    module = grpo(reasoner, "bfloat16")
    module.configure_model()
    module.policy.check([[5, 6, 7]])
    sampled, casts = [], Casts(module.policy.bare.get_decoder().layers[0].mlp.up_proj.weight)
    generate, update = module.engine.generate, module.update

    def counted(function):
        def call(*arguments):
            before = casts.count
            with casts:
                result = function(*arguments)
            sampled.append(casts.count - before)
            return result

        return call

    fit(module, 2)  # the engine's comparisons at its first rollout
    module.engine.generate, module.update = counted(generate), counted(update)
    module.sampled_logprobs = lambda batch: batch.behaviour_logprobs  # a pass of its own otherwise
    fit(module, 2)
    assert sampled == [1, 2], "one rollout, two updates of several passes"


@pytest.mark.parametrize("choice", ["bfloat16", "float32"])
def test_an_update_uses_the_weights_of_the_step_before(reasoner, choice):
    """Autocast keeps its casts until its outermost context ends, which under Lightning's plugin is the whole step."""
    module = grpo(reasoner, choice)
    module.configure_model()
    policy, optimizer = module.policy, torch.optim.SGD(module.policy.model.parameters(), lr=10.0)
    steps, groups = Steps(optimizer, None, lambda loss: loss.backward(), None), groups_of(module.policy)
    with torch.autocast("cpu", torch.bfloat16):
        before = policy.logprobs(groups)[0]
        steps.backward(-before.sum())
        steps.step()
        within = policy.logprobs(groups)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        fresh = policy.logprobs(groups)[0].detach()
    assert torch.equal(within, fresh) and not torch.equal(within, before)


def test_the_policy_and_the_trainer_set_the_same_precision(reasoner):
    results = []
    for choice, trainers in (("bfloat16", "32-true"), ("float32", "bf16-mixed"), ("float32", "32-true")):
        module = grpo(reasoner, choice)
        trainer = fit(module, 4, seed=0, precision=trainers)
        results.append(weights(module))
        assert module.precision == ("32-true" if len(results) == 3 else "bf16-mixed")
        assert ("train/importance" in trainer.callback_metrics) == (module.precision != "32-true")
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_resumed_run_keeps_the_precision_of_its_checkpoint(reasoner, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compute, "probe", lambda config: Probe(3.0, 1.0))
    whole, first, second = (grpo(reasoner, "auto") for _ in range(3))
    fit(whole, 4, seed=0)
    assert "policy.compute auto: bfloat16; a layer's matrix products take" in capsys.readouterr().out
    fit(first, 2, seed=0).save_checkpoint(tmp_path / "half.ckpt")
    monkeypatch.setattr(compute, "probe", lambda config: Probe(1.0, 3.0))
    fit(second, 4, seed=0, ckpt_path=tmp_path / "half.ckpt")
    assert second.policy.compute == "bfloat16" and torch.equal(weights(whole), weights(second))


@pytest.mark.parametrize("choice", ["auto", "bfloat16"])
def test_two_settings_of_the_precision_are_refused(reasoner, choice):
    with pytest.raises(ConfigError, match="model.policy.compute is .* and trainer.precision is bf16-mixed"):
        fit(grpo(reasoner, choice), precision="bf16-mixed")
    with pytest.raises(ConfigError, match=f"policy.compute is {choice} for a reward or cost model"):
        Scorer(PolicyParams(reasoner, compute=choice))
