"""Rows without signal are left out of the update, and its gradient is still that of all rows."""

import inspect
from dataclasses import replace

import pytest
import torch

import objectives
from examples.methods.gmpo import GMPO
from lightning_modules import GRPO, AdaptThink, KLPenalty, Shaping
from lightning_modules.core.on_policy import OnPolicyModule
from lightning_modules.core.optimizer_steps import Steps
from lightning_modules.core.policy_update import Objective, PolicyUpdate
from lightning_modules.core.signal import declares_no_gradient
from objectives import (
    CISPO,
    SAPO,
    VESPO,
    ClippedSurrogate,
    ConstantLength,
    PolicyLoss,
    Probability,
    Reinforce,
    SequenceMean,
    SequenceSum,
    SequenceSurrogate,
    TokenMean,
)
from policies import LoRA, Policy, PolicyParams
from rewards import FunctionReward, Reward, TurnRewards
from rollouts import BatchPlan, EmbeddedEngine, RolloutBatch, SamplingParams
from tests.helpers import adamw, build, digits, fit, weights
from tests.helpers.talks import Chat

LOSSES = [
    ClippedSurrogate(0.2, 0.28, dual_clip=3.0), Reinforce(), SequenceSurrogate(0.1, 0.2),
    SequenceSurrogate(length_root=False), CISPO(ratio_cap=1.5), SAPO(), VESPO(), Probability(), GMPO(),
]  # fmt: skip
ROWS, TIME, GROUP = 12, 6, 4


class Added(ClippedSurrogate):
    """A loss of a user's own: its class adds a term that acts on all tokens, and declares nothing."""

    def __call__(self, logprobs, behaviour_logprobs, advantages, mask):
        loss, sums = super().__call__(logprobs, behaviour_logprobs, advantages, mask)
        return loss + 0.1 * logprobs.square(), sums


class Mixin:
    def __call__(self, *arguments):
        loss, sums = super().__call__(*arguments)
        return loss + 0.1 * arguments[0].square(), sums


class Mixed(Mixin, ClippedSurrogate):
    pass


@pytest.fixture(scope="module")
def scene(reasoner):
    """A policy in double precision, and three groups: one with signal, one without, one with advantages of tokens."""
    policy = Policy(PolicyParams(reasoner)).double()
    draws = torch.Generator().manual_seed(5)
    lengths = torch.tensor([6, 3, 5, 2, 4, 6, 1, 3, 5, 4, 2, 6])
    completions = torch.arange(TIME) < lengths[:, None]
    mask = completions.clone()
    mask[1] = False  # a truncated completion
    mask[9, 0] = False  # a forced token
    advantages = torch.randn(ROWS, 1, generator=draws).expand(ROWS, TIME).clone()
    advantages[4:8] = 0.0
    advantages[8, :2] = 0.0
    advantages[10] = 0.0
    prompts = torch.randint(5, 20, (3, 5), generator=draws)
    batch = RolloutBatch(
        prompt_ids=prompts,
        prompt_mask=torch.arange(5) >= torch.tensor([[0], [2], [1]]),
        completion_ids=torch.randint(5, 20, (ROWS, TIME), generator=draws),
        completion_mask=completions,
        action_mask=mask,
        behaviour_logprobs=-torch.rand(ROWS, TIME, generator=draws),
        finish_reasons=["eos"] * ROWS,
        rows=[{"id": str(prompt)} for prompt in range(3)],
        advantages=advantages,
    )
    return policy, batch


def plain_logprobs(policy, batch):
    """Of every completion token by one forward per row, with a gradient."""
    values = []
    for row in range(len(batch.completion_ids)):
        owner = row // batch.group_size
        prompt, length = batch.prompt_ids[owner][batch.prompt_mask[owner]], int(batch.lengths[row])
        ids = torch.cat([prompt, batch.completion_ids[row, :length]])[None]
        logits = policy.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        of_tokens = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        values.append(torch.nn.functional.pad(of_tokens, (0, TIME - length)))
    return torch.stack(values)


class Kept:
    """In place of an optimiser: keeps the gradients and changes nothing."""

    def __init__(self, parameters):
        self.param_groups = [{"params": list(parameters)}]

    def step(self):
        self.gradients = [p.grad for p in self.param_groups[0]["params"]]

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None


def updated(policy, batch, loss, aggregation, sampled, budget=None, needs_all_rows=False):
    """(the gradients that an update of one step computes, its metrics)."""

    def token_loss(logprobs, behaviour, reference, advantages, mask):
        return loss(logprobs, behaviour, advantages, mask)

    objective = Objective(
        token_loss, lambda batch, rows, sampled: sampled, lambda *given: None, aggregation, 1.0, 0.0, None,
        needs_all_rows,
    )  # fmt: skip
    optimizer = Kept(policy.model.parameters())
    update = PolicyUpdate(
        batch, batch.action_mask, policy=policy, plan=BatchPlan(3, GROUP), objective=objective,
        steps=Steps(optimizer, None, lambda loss: loss.backward(), None), sampled_logprobs=sampled,
        reference_logprobs=None, token_budget=budget, may_halve=False,
    )  # fmt: skip
    metrics = update.run()
    return optimizer.gradients, metrics


@pytest.mark.parametrize("loss", [*LOSSES, Added(), Mixed()], ids=lambda loss: type(loss).__name__)
def test_the_gradient_is_that_of_all_rows(scene, loss):
    """Against one forward per row, the loss over all rows at once, and autograd."""
    policy, batch = scene
    aggregation = {"Reinforce": SequenceSum(), "VESPO": TokenMean(), "SAPO": ConstantLength(7)}.get(
        type(loss).__name__, SequenceMean()
    )
    logprobs = plain_logprobs(policy, batch)
    sampled = logprobs.detach() + 0.4 * torch.randn(ROWS, TIME, generator=torch.Generator().manual_seed(1))
    values, _ = loss(logprobs, sampled, batch.advantages, batch.action_mask)
    total = (torch.where(batch.action_mask, values, 0.0) * aggregation(batch.action_mask)[:, None]).sum()
    parameters = list(policy.model.parameters())
    expected = torch.autograd.grad(total, parameters)
    declared = declares_no_gradient(loss, "__call__")
    assert declared == (type(loss) not in (Added, Mixed))
    everything, _ = updated(policy, batch, loss, aggregation, sampled, needs_all_rows=True)
    for budget in (None, 16):
        gradients, metrics = updated(policy, batch, loss, aggregation, sampled, budget, not declared)
        # Rows 1 (no token with loss), 4 to 7 and 10 (advantages of 0) are left out.
        assert metrics["computed_rows"] == pytest.approx(6 / 12 if declared else 11 / 12)
        assert metrics["loss"] == pytest.approx(total.item(), abs=2e-6)
        for one, other, plain in zip(gradients, everything, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-7, rtol=0)
            assert torch.allclose(one, plain, atol=1e-6, rtol=1e-5), "log-probs are float32"


def test_losses_that_declare_it_have_no_gradient_at_an_advantage_of_zero():
    """All losses of the packages, also where ratios are extreme; a new one needs a case here."""
    shipped = {value for value in vars(objectives).values() if inspect.isclass(value) and issubclass(value, PolicyLoss)}
    assert shipped - {PolicyLoss} == {type(loss) for loss in LOSSES} - {GMPO}
    draws = torch.Generator().manual_seed(2)
    mask = torch.rand(64, 5, generator=draws) < 0.7
    for loss in LOSSES:
        for scale in (0.1, 3.0):
            logprobs = (-scale * torch.rand(64, 5, generator=draws, dtype=torch.double)).requires_grad_()
            behaviour = -scale * torch.rand(64, 5, generator=draws, dtype=torch.double)
            values, _ = loss(logprobs, behaviour, torch.zeros(64, 5, dtype=torch.double), mask)
            torch.where(mask, values, 0.0).sum().backward()
            assert not logprobs.grad.any(), f"{loss}"


def test_an_update_without_signal_has_a_gradient_of_zeros(scene):
    """Not none: momentum and weight decay of the optimiser act as if all rows had been computed."""
    policy, batch = scene
    silent = replace(batch, advantages=torch.zeros(ROWS))
    gradients, metrics = updated(policy, silent, ClippedSurrogate(), SequenceMean(), None)
    everything, _ = updated(policy, silent, ClippedSurrogate(), SequenceMean(), None, needs_all_rows=True)
    for one, other in zip(gradients, everything, strict=True):
        assert torch.equal(one, other) and not one.any()
    assert metrics["computed_rows"] == 0 == metrics["loss"] and "ratio" not in metrics
    assert metrics["entropy"] == pytest.approx(float(-batch.behaviour_logprobs[batch.action_mask].mean()))


class Undeclared(GRPO):
    def token_loss(self, *arguments):
        return super().token_loss(*arguments)


class Redeclared(Undeclared):
    zero_advantage_has_no_gradient = True


class BySetting(ClippedSurrogate):
    """A declaration may depend on settings."""

    def __call__(self, *arguments):
        return super().__call__(*arguments)

    @property
    def zero_advantage_has_no_gradient(self):
        return self.dual_clip is None


@pytest.mark.parametrize(
    ("method", "parts", "all_rows"),
    [
        (GRPO, {}, False),
        (GRPO, {"kl": KLPenalty(0.1)}, True),
        (GRPO, {"kl": KLPenalty(0.1, placement="reward")}, True),
        (GRPO, {"shaping": Shaping(entropy_bonus=0.01)}, True),
        (GRPO, {"batch": BatchPlan(4, 4, epochs=2, kl_stop=0.1)}, True),
        (GRPO, {"loss": Added()}, True),
        (GRPO, {"loss": Mixed()}, True),
        (GRPO, {"loss": BySetting()}, False),
        (GRPO, {"loss": BySetting(dual_clip=3.0)}, True),
        (Undeclared, {}, True),
        (Redeclared, {}, False),
    ],
)
def test_all_rows_are_computed_for_terms_that_act_on_them(method, parts, all_rows):
    module = build("none", [FunctionReward(digits)], method, **({"kl": KLPenalty(0.0)} | parts))
    assert module.needs_all_rows == all_rows
    module.token_loss = module.token_loss  # replaced on the object
    assert module.needs_all_rows


def test_methods_that_override_the_loss_declare_it_themselves():
    overriding = [cls for cls in OnPolicyModule.__subclasses__() if "token_loss" in vars(cls)]
    assert AdaptThink in overriding
    assert all("zero_advantage_has_no_gradient" in vars(cls) for cls in overriding if cls.__module__ != __name__)


class Sometimes(Reward):
    """Digits for half of the prompts, and nothing in every third rollout; equal for all completions elsewhere."""

    def __init__(self):
        super().__init__()
        self.rollouts = 0

    def score(self, batch):
        silent = self.rollouts % 3 == 1
        values = digits(batch.completions)
        return [0.0 if silent or (row // batch.group_size) % 2 else value for row, value in enumerate(values)]

    def observe(self, batch):
        self.rollouts += 1

    def state_dict(self):
        return {"rollouts": self.rollouts}

    def load_state_dict(self, state):
        self.rollouts = state.get("rollouts", 0)


class Shifted(EmbeddedEngine):
    def matches(self, policy):
        return False


RUNS = {
    "adamw": {"batch": BatchPlan(4, 4)},
    "budget, two updates": {"batch": BatchPlan(4, 4, update_token_budget=40, updates_per_rollout=2, epochs=2)},
    "lora, another engine": {"batch": BatchPlan(4, 4), "lora": LoRA(r=4, alpha=8), "engine": Shifted()},
    "turns": {
        "batch": BatchPlan(4, 4),
        "environment": Chat(turns=2),
        "sampling": SamplingParams(max_new_tokens=40),
        "shaping": Shaping(credit="turn"),
        "rewards": [TurnRewards(weight=0.0), Sometimes()],
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_equal_those_that_compute_all_rows(reasoner, name, monkeypatch):
    """Three rollouts with AdamW, one of them without any signal, in which the moments move the weights."""
    results, computed = [], []
    for all_rows in (True, False):
        if all_rows:
            monkeypatch.setattr(GRPO, "needs_all_rows", True)
        else:
            monkeypatch.undo()
        parts = {"kl": KLPenalty(0.0), "optimizer": adamw(1e-3, 0.1), "max_grad_norm": None} | RUNS[name]
        module = build(reasoner, parts.pop("rewards", None) or [Sometimes()], **parts)
        module.configure_model()
        module.policy.double()
        trainer = fit(module, 3 * module.batch.updates, seed=0)
        results.append((weights(module), {k: float(v) for k, v in trainer.callback_metrics.items()}))
        computed.append(results[-1][1]["train/computed_rows"])
    assert computed[0] == 1 and computed[1] <= 0.5
    assert torch.allclose(results[0][0], results[1][0], atol=1e-7)
    for metric in ("train/loss", "train/grad_norm"):
        assert results[0][1][metric] == pytest.approx(results[1][1][metric], rel=1e-4, abs=1e-6)
    # Of rows that are left out, the rollout's own log-probs estimate it.
    assert results[0][1]["train/entropy"] == pytest.approx(results[1][1]["train/entropy"], rel=0.15)
