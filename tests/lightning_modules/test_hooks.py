"""The contract of the hooks in docs/architecture.md: which there are, how often they are called, which are pure."""

import inspect
import io
import re

import lightning as L
import pytest
import torch

import lightning_modules
from datamodules import RecordsPrompts
from environments import ThinkerDialogue, TurnBudgets, TurnPrompts
from lightning_modules import (
    GRPO,
    HCRLHF,
    PPO,
    SGRPO,
    TSPMO,
    AdaptThink,
    AutoThink,
    PPOLagrangian,
    ProRL,
    SelfVerify,
    Still3,
    Thinker,
)
from lightning_modules.core.on_policy import OnPolicyModule
from rewards import ExactAnswer, FunctionReward, RecordsCost, RecordsReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import ROOT, build, digits, fit, weights

HOOKS = re.findall(r"^\| `(\w+)\(", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
METHODS = [
    method
    for method in map(lightning_modules.__dict__.get, lightning_modules.__all__)
    if isinstance(method, type) and issubclass(method, OnPolicyModule) and method is not OnPolicyModule
]
SHORT = TurnPrompts("<answer>?", "No.", "Short?")
#: properties and names, not hooks of the training step
OTHERS = {"all_rewards", "metric_name", "needs_all_rows"}


def overridden(method):
    """Names that a method's own classes define although its bases have them."""
    own = [cls for cls in method.__mro__ if issubclass(cls, OnPolicyModule) and cls is not OnPolicyModule]
    return {
        name
        for cls in own
        for name, value in vars(cls).items()
        if hasattr(OnPolicyModule, name)
        and not hasattr(L.LightningModule, name)
        and not name.startswith("_")
        and (callable(value) or isinstance(value, property))
    }


def test_every_hook_of_the_table_exists_and_every_overridden_one_is_in_it():
    assert len(set(HOOKS)) == len(HOOKS) > 10
    assert all(callable(getattr(OnPolicyModule, name)) for name in HOOKS)
    for method in METHODS:
        assert overridden(method) <= {*HOOKS, *OTHERS}, method.__name__


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_many_overridden_hooks_are_explained(method):
    hooks = overridden(method) & set(HOOKS)
    text = inspect.getdoc(method)
    if len(hooks) > 4:
        assert all(f"`{name}`" in text for name in hooks), f"the docstring names each of {sorted(hooks)} and says why"


def small(method, reasoner, assistant):
    """A method with a rollout of 4 x 4, and its data."""
    if issubclass(method, HCRLHF):
        data = RecordsPrompts(train_size=24, val_size=4, safety_size=8, seed=1)
        parts = {"cost": RecordsCost(), "test": lightning_modules.SafetyTest(skip=True)}
        return build(assistant, [RecordsReward()], method, **parts), data
    judged = method in (AdaptThink, AutoThink, SelfVerify, Still3)
    rewards = [ExactAnswer() if judged else FunctionReward(digits)]
    plan = BatchPlan(4, 4, updates_per_rollout=2, epochs=2)
    parts = {"cutoff": 2} if method is SGRPO else {"weight_penalty": 0.0} if method is TSPMO else {}
    if method is AdaptThink:
        parts["reference"] = lightning_modules.Reference(samples=2, cache=False)
    length = 6
    if method is Thinker:
        parts["environment"], length = ThinkerDialogue(ExactAnswer(), TurnBudgets(4, 4, 4, 4), SHORT), 200
    return build(reasoner, rewards, method, batch=plan, sampling=SamplingParams(max_new_tokens=length), **parts), None


def plain(state):
    """The bytes of a checkpoint."""
    torch.save(state, buffer := io.BytesIO())
    return buffer.getvalue()


CALLED = [GRPO, ProRL, AdaptThink, AutoThink, HCRLHF, SGRPO, TSPMO, SelfVerify, Still3, PPO, PPOLagrangian, Thinker]


@pytest.mark.parametrize("method", CALLED)
def test_hooks_are_called_as_often_as_the_table_says_and_pure_ones_change_nothing(
    method, reasoner, assistant, monkeypatch
):
    module, data = small(method, reasoner, assistant)
    calls = {name: 0 for name in HOOKS}
    pure = {}

    def watched(name, hook):
        def call(*arguments, **keywords):
            calls[name] += 1
            result = hook(*arguments, **keywords)
            if name in ("totals", "returns", "loss_mask"):
                state = {}
                module.on_save_checkpoint(state)
                before, again = plain(state), hook(*arguments, **keywords)
                state = {}
                module.on_save_checkpoint(state)
                pure[name] = before == plain(state) and torch.equal(result.nan_to_num(0.0), again.nan_to_num(0.0))
            return result

        return call

    for name in HOOKS:
        monkeypatch.setattr(module, name, watched(name, getattr(module, name)))
    fit(module, -1, data=data, max_epochs=1, limit_train_batches=2, seed=0)
    steps = module.batch.updates_per_rollout * module.batch.epochs
    for name in ("prompts", "observe", "learned_from", "metrics"):
        assert calls[name] == 2, f"{name}: {calls[name]} calls in two rollouts"
    assert 0 < calls["auxiliary_loss"] <= 2 * steps
    assert (
        calls["token_loss"] >= calls["auxiliary_loss"]
        and min(calls[name] for name in ("rollout", "score", "advantages")) >= 2
    )
    assert pure and all(pure.values()), pure


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_batch_end", "on_validation_epoch_start"])
def test_a_hook_without_its_base_class_s_is_named(reasoner, hook):
    """Lightning's own hooks are empty, so `super()` is easily forgotten; ours prepare the training."""
    changed = type("Mine", (GRPO,), {hook: lambda self, *arguments, **options: None})
    with pytest.raises(ConfigError, match=f"Mine overrides {hook}"):
        fit(build(reasoner, [FunctionReward(digits)], changed), 2, validate_every=1)
    calling = type("Mine", (GRPO,), {hook: lambda self, *a, **o: getattr(GRPO, hook)(self, *a, **o)})
    fit(build(reasoner, [FunctionReward(digits)], calling), 2, validate_every=1)


def test_a_compiled_module_is_refused(reasoner):
    with pytest.raises(ConfigError, match="GRPO was compiled with torch.compile"):
        fit(torch.compile(build(reasoner, [FunctionReward(digits)]), backend="eager"))


def test_weights_load_into_a_module_without_a_model(reasoner):
    """The model is loaded when a training starts; a state dict may come earlier."""
    trained, fresh = build(reasoner, [FunctionReward(digits)]), build(reasoner, [FunctionReward(digits)])
    fit(trained, 1)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(weights(trained), weights(fresh))
