"""PPO: the gradient of both bodies by plain forwards, warm-up, resumed runs, turns, where the KL is, bad settings."""

import lightning as L
import pytest
import torch

from callbacks import RolloutCheckpoint
from callbacks.findings import Seen, critic_learns_nothing
from cli.plan_report import memory
from cli.run_plan import RunPlan
from lightning_modules import PPO, Critic, KLPenalty, Shaping
from objectives import GAE
from policies import LoRA, Policy, PolicyParams, ValueModel
from rewards import FunctionReward, TurnRewards
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import adamw, build, digits, fit, quiet_trainer, sgd, sums, weights
from tests.helpers.talks import Chat

BODIES = ["own", "shared"]
SMALL = BatchPlan(4, 2)


def slow(*values):
    """A case whose kind has a cheaper member in the normal suite."""
    return pytest.param(*values, marks=pytest.mark.long)


def ppo(model, body="own", **parts):
    critic = {"body": body, "lr": 0.1, **parts.pop("critic", {})}
    return build(
        model,
        parts.pop("rewards", [FunctionReward(digits)]),
        PPO,
        **({"batch": SMALL} | parts),
        critic=Critic(**critic),
    )


def of_critic(module):
    return torch.cat([p.detach().flatten() for p in module.critic_parameters()])


def plain_pass(decoder, row, batch):
    """The states before the tokens of one completion, by a forward without padding or packing."""
    prompt = batch.prompt_ids[row // batch.group_size][batch.prompt_mask[row // batch.group_size]]
    completion = batch.completion_ids[row][batch.completion_mask[row]]
    states = decoder(input_ids=torch.cat([prompt, completion])[None], use_cache=False).last_hidden_state[0]
    return states[len(prompt) - 1 : -1], completion


@pytest.mark.parametrize(("body", "budget"), [("own", 40), ("shared", 40), slow("own", None), slow("shared", None)])
def test_the_gradient_is_that_of_plain_forwards_and_two_losses(reasoner, body, budget):
    """One step of SGD at learning rate 1 changes each weight by its gradient; the critic has moved once before."""
    steps = dict(
        optimizer=sgd(1.0), max_grad_norm=None, kl=KLPenalty(), batch=BatchPlan(4, 2, update_token_budget=budget)
    )
    module = ppo(reasoner, body, critic={"lr": 1.0, "coefficient": 0.3, "warmup_rollouts": 1}, **steps)
    before = {}

    class Before(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *others):
            before.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    fit(module, 2, [Before()], seed=2)
    batch = module.last_rollout
    policy = Policy(PolicyParams(reasoner, packing=False))
    policy.load_state_dict(
        {n.removeprefix("policy."): v for n, v in before.items() if n.startswith("policy.")}, strict=False
    )
    critic = ValueModel(PolicyParams(reasoner, packing=False))
    if body == "own":
        critic.load_state_dict({n.removeprefix("critics.0."): v for n, v in before.items() if "critics" in n})
        decoder, head = critic.backbone, critic.head
    else:
        decoder, head = policy.bare.get_decoder(), critic.head
        head.load_state_dict({n.rpartition(".")[2]: v for n, v in before.items() if "value_head" in n})
    tokens, policy_loss, value_loss = int(batch.action_mask.sum()), 0.0, 0.0
    for row in range(len(batch.finish_reasons)):
        states, completion = plain_pass(policy.bare.get_decoder(), row, batch)
        logprobs = policy.bare.get_output_embeddings()(states).log_softmax(-1).gather(1, completion[:, None])[:, 0]
        policy_loss -= (logprobs * batch.advantages[row, : len(completion)]).sum() / tokens
        values = head(plain_pass(decoder, row, batch)[0])[:, 0]
        value_loss += ((values - batch.value_targets[row, : len(completion), 0]) ** 2).sum() / 2 / tokens
    (policy_loss + 0.3 * value_loss).backward()
    assert float(batch.values.abs().max()) > 1e-3, "the critic had learned something"
    expected = {f"policy.{name}": p.grad for name, p in policy.named_parameters()}
    owner, prefix = (critic, "critics.0.") if body == "own" else (head, "policy.value_head.")
    expected |= {f"{prefix}{name}": p.grad for name, p in owner.named_parameters()}
    trained = dict(module.named_parameters())
    assert set(expected) == set(trained)
    for name, gradient in expected.items():
        assert torch.allclose(before[name] - trained[name], gradient, atol=2e-5), name


@pytest.mark.parametrize("body", ["shared", slow("own")])
def test_a_warm_up_trains_the_critic_alone(reasoner, body):
    module = ppo(reasoner, body, critic={"warmup_rollouts": 2}, optimizer=adamw(1e-2, weight_decay=0.5))
    seen = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *others):
            seen.append((weights(pl_module), of_critic(pl_module)))

        def on_train_batch_end(self, trainer, *others):
            assert ("train/grad_norm" in trainer.callback_metrics) == (len(seen) > 2)
            assert float(trainer.callback_metrics["train/critic_grad_norm"]) > 0

    trainer = fit(module, 3, [Look()], seed=0)
    (start, critic), (second, second_critic), (third, _) = seen
    assert torch.equal(start, second) and torch.equal(start, third), "weight decay and moments too are off"
    assert not torch.equal(start, weights(module)) and not torch.equal(critic, second_critic)
    states = trainer.optimizers[0].state
    assert all(int(states[p]["step"]) == 1 for p in trainer.optimizers[0].param_groups[0]["params"] if p in states)


def test_gradients_of_policy_and_critic_are_clipped_by_their_own_norms(reasoner):
    """A critic's gradient, which is large at first, must not shorten the policy's step."""
    module = ppo(
        reasoner,
        rewards=[FunctionReward(digits, weight=1000.0)],
        optimizer=sgd(1.0),
        max_grad_norm=0.01,
        critic={"lr": 1.0, "value_clip": None},
    )
    module.configure_model()
    start = weights(module), of_critic(module)
    trainer = fit(module, 1, seed=0)
    assert float(trainer.callback_metrics["train/critic_grad_norm"]) > 1
    assert float((weights(module) - start[0]).norm()) == pytest.approx(0.01, rel=1e-3)
    assert float((of_critic(module) - start[1]).norm()) == pytest.approx(0.01, rel=1e-3)


CASES = {
    "own": {},
    "shared": {"body": "shared"},
    "adapters": {"lora": LoRA(r=4, alpha=8)},
    "adapters, shared": {"lora": LoRA(r=4, alpha=8), "body": "shared"},
    "critic of adapters": {"critic": {"model": "adapters"}},
}


SLOW = ("own", "shared", "adapters")


@pytest.mark.parametrize("case", [slow(name) if name in SLOW else name for name in CASES])
def test_a_resumed_run_has_the_same_weights_bit_for_bit(reasoner, case, tmp_path):
    def made():
        parts = {key: dict(value) if isinstance(value, dict) else value for key, value in CASES[case].items()}
        if "critic" in parts:
            parts["critic"] = {"model": PolicyParams(reasoner, lora=LoRA(r=4, alpha=8))}
        plan = BatchPlan(4, 2, updates_per_rollout=2)
        parts["critic"] = {"warmup_rollouts": 1, **parts.get("critic", {})}
        return ppo(reasoner, parts.pop("body", "own"), batch=plan, optimizer=adamw(1e-2), **parts)

    whole, resumed = made(), made()
    saving = RolloutCheckpoint(every_n_rollouts=2, keep=None, folder=str(tmp_path / "saved"))
    fit(whole, 8, [saving], seed=0, folder=tmp_path)
    checkpoint = tmp_path / "saved/rollout_000002.ckpt"
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    frozen = [n for n in names if "backbone" in n and "lora_" not in n]
    assert any("head" in n for n in names) and (not frozen or case in ("own",)), "only trained weights are saved"
    fit(resumed, 8, seed=0, folder=tmp_path, ckpt_path=checkpoint)
    assert torch.equal(weights(whole), weights(resumed)) and torch.equal(of_critic(whole), of_critic(resumed))


def test_kl_is_in_every_tokens_reward_in_the_completions_or_in_the_loss(reasoner):
    """With lambda 1 the target of a token is the reward still to come."""
    targets = {}
    for placement in ("token_reward", "reward", "loss"):
        estimator = "k2" if placement == "loss" else "k1"
        module = ppo(reasoner, advantage=GAE(lam=1.0), kl=KLPenalty(0.5, estimator, placement), optimizer=sgd(0.5))
        fit(module, 2, seed=1)
        batch, mask = module.last_rollout, module.last_rollout.action_mask
        scores = batch.rewards["digits"][:, None]
        kl = (batch.behaviour_logprobs - batch.reference_logprobs) * mask
        to_come = kl.flip(1).cumsum(1).flip(1) if placement == "token_reward" else kl.sum(1, keepdim=True)
        expected = scores - (0.0 if placement == "loss" else 0.5) * to_come
        targets[placement] = float((to_come * mask).abs().max())
        assert torch.allclose(batch.value_targets[..., 0][mask], expected.expand(mask.shape)[mask], atol=1e-4), (
            placement
        )
    assert min(targets.values()) > 1e-4


def test_with_credit_by_turn_nothing_reaches_across_turns(reasoner):
    module = ppo(
        reasoner, rewards=[TurnRewards(), FunctionReward(digits)], environment=Chat(), shaping=Shaping(credit="turn"),
        advantage=GAE(lam=1.0, normalise=False), kl=KLPenalty(0.1, "k1", "token_reward"), sampling=SamplingParams(64),
        optimizer=sgd(0.0), critic={"lr": 0.0},
    )  # fmt: skip
    fit(module, 1, seed=3)
    batch, turns = module.last_rollout, module.last_rollout.turns
    number, last = turns.number, turns.counts - 1
    assert int(turns.counts.max()) == 3 and not torch.equal(batch.completion_mask, batch.action_mask)
    for row in range(len(number)):
        for turn in range(int(turns.counts[row])):
            earned = float(turns.rewards[row, turn]) + float(batch.rewards["digits"][row]) * (turn == int(last[row]))
            advantages = batch.advantages[row][number[row] == turn]
            assert torch.allclose(advantages, torch.full_like(advantages, earned), atol=1e-5)  # the critic says zero
    assert (batch.advantages[~batch.action_mask] == 0).all()


def test_settings_that_cannot_be_meant_are_refused(reasoner, assistant):
    for wrong, message in (
        (
            {"body": "shared", "model": PolicyParams(reasoner)},
            "critic.body is shared, the policy's own, but critic.model",
        ),
        ({"coefficient": 0.0}, "set the coefficient above 0"),
        ({"value_clip": 0.0}, "critic.value_clip is 0.0; set it above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Critic(**wrong)
    with pytest.raises(ConfigError, match="whose tokenizer is not that of"):
        fit(ppo(reasoner, critic={"model": PolicyParams(assistant)}))
    with pytest.raises(ConfigError, match="critic is a str"):
        build(reasoner, [FunctionReward(digits)], PPO, critic="own")


def test_the_plan_counts_the_critic(reasoner):
    data, lines = sums(), {}
    for body in BODIES:
        module = ppo(reasoner, body, optimizer=adamw(1e-3))
        lines[body] = "\n".join(memory(RunPlan.of(quiet_trainer(), module, data), module))
    assert "1 critic(s), with the optimiser's state: " in lines["own"] and "critic" not in lines["shared"]
    assert "gradients and activations of the critic(s)" in lines["own"]


def test_a_critic_that_explains_nothing_is_reported(reasoner):
    module = ppo(reasoner)
    seen = [Seen(8, 0, 8, {}, 0, 1.0, explained=-0.2) for _ in range(20)]
    assert "explained -0.20 of the variance" in critic_learns_nothing(module, seen)
    seen[-3].explained = 0.1
    assert critic_learns_nothing(module, seen) is None
