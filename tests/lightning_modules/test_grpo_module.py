"""The whole path from a rollout to the parameters' gradient, against plain Python."""

import math
import threading

import lightning as L
import pytest
import torch

from lightning_modules import GRPO, KLPenalty, Shaping
from lightning_modules.core.micro_batches import micro_batches, update_slices
from objectives import ClippedSurrogate, GlobalNorm, ReinforcePlusPlus, RunningMean, SequenceMean, TokenMean
from policies import LoRA, PolicyParams
from rewards import FunctionReward, PerTask
from rollouts import BatchPlan, EmbeddedEngine, SamplingParams, TransformersEngine
from support.errors import ConfigError
from tests.helpers import build, digits, fit, sgd, weights


def grpo(model, rewards=None, **parts):
    small = {"sampling": SamplingParams(max_new_tokens=12), "kl": KLPenalty(coefficient=0.04), "max_grad_norm": None}
    return build(model, [FunctionReward(digits)] if rewards is None else rewards, **(small | parts))


def plain_grpo_loss(module, batch, advantages_of_groups, beta=0.04, clip=0.2, floats=float):
    """Equation 3 of DeepSeekMath in plain floats, with log-probs from forward passes over single unpadded sequences."""
    total = 0.0
    for i in range(len(batch.finish_reasons)):
        prompt = batch.prompt_ids[i // batch.group_size][batch.prompt_mask[i // batch.group_size]].tolist()
        completion = batch.completion_ids[i][batch.completion_mask[i]].tolist()
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            new = module.policy.model(ids).logits[0].log_softmax(-1)
            ref = module.policy.reference(ids).logits[0].log_softmax(-1)
        row = 0.0
        for t, token in enumerate(completion):
            place = len(prompt) + t - 1
            log_new, log_ref = floats(new[place, token]), floats(ref[place, token])
            log_old = floats(batch.behaviour_logprobs[i, t])
            ratio = math.exp(log_new - log_old)
            advantage = advantages_of_groups[i]
            surrogate = min(ratio * advantage, max(min(ratio, 1 + clip), 1 - clip) * advantage)
            k3 = math.exp(log_ref - log_new) - (log_ref - log_new) - 1
            row += surrogate - beta * k3
        total += row / len(completion)
    return -total / len(batch.finish_reasons)


def test_module_loss_and_gradient_equal_the_formula(reasoner):
    """The first update from a moved policy: the loss by hand, and SGD's step against finite differences of it."""
    torch.manual_seed(0)
    module = grpo(reasoner, optimizer=sgd(1.0))
    module.configure_model()
    module.policy.double()
    with torch.no_grad():
        for parameter in module.policy.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    before = {name: p.detach().clone() for name, p in module.policy.model.named_parameters()}
    fit(module, 1)
    batch = module.last_rollout
    rewards = digits(batch.completions)
    advantages = []
    for i in range(16):
        group = rewards[4 * (i // 4) : 4 * (i // 4) + 4]
        mean = sum(group) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        advantages.append((rewards[i] - mean) / (std + 1e-4))
    after = {name: p.detach().clone() for name, p in module.policy.model.named_parameters()}
    module.policy.model.load_state_dict(before, strict=False)
    loss = plain_grpo_loss(module, batch, advantages)
    logged = float(module.trainer.callback_metrics["train/loss"])
    assert logged == pytest.approx(loss, abs=2e-7)  # log-probs are float32 and the advantages sum to zero
    # SGD's change is the gradient; the loss by hand must have the same slope along it, and along it mixed with noise
    gradient = {name: before[name] - after[name] for name in before}
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradient.values()))
    for noise in (0.0, 0.5):
        direction = {name: g / norm + noise * torch.randn_like(g) / 50 for name, g in gradient.items()}
        values = []
        for sign in (1, -1):
            moved = {name: before[name] + sign * 1e-3 * direction[name] for name in before}
            module.policy.model.load_state_dict(moved, strict=False)
            values.append(plain_grpo_loss(module, batch, advantages))
        expected = sum(float((gradient[name] * direction[name]).sum()) for name in before)
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("aggregation", [SequenceMean(), TokenMean()])
def test_the_split_into_micro_batches_changes_nothing(reasoner, aggregation):
    results = []
    for budget in (None, 60, 1):
        module = grpo(reasoner, aggregation=aggregation, batch=BatchPlan(4, 4, update_token_budget=budget))
        fit(module, 2)
        results.append(weights(module))
    assert torch.allclose(results[0], results[1], atol=2e-6) and torch.allclose(results[0], results[2], atol=2e-6)


def test_packing_and_engine_change_nothing_but_speed(reasoner):
    """The losses of the first updates, and the weights after them, with the fast parts and with the plain ones."""
    results = []
    for packing, engine in ((True, EmbeddedEngine()), (False, EmbeddedEngine()), (False, TransformersEngine())):
        module = grpo(reasoner, packing=packing, engine=engine, optimizer=sgd(1.0))
        losses = Losses()
        fit(module, 4, callbacks=[losses])
        results.append((losses.found, weights(module)))
    for found, end in results[1:]:
        assert found == pytest.approx(results[0][0], abs=1e-6)
        assert torch.allclose(end, results[0][1], atol=1e-5)
    assert len({round(loss, 7) for loss in results[0][0]}) == 4


class Losses(L.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, *given):
        self.found.append(float(trainer.callback_metrics["train/loss"]))


def test_micro_batches_cover_each_row_once_within_the_budget(reasoner):
    module = grpo(reasoner)
    fit(module, 1)
    batch = module.last_rollout
    for part in update_slices(batch, 2):
        made = micro_batches(batch, part, 60, None)
        assert sorted(int(r) for m in made for r in m.rows) == list(range(part.start, part.stop))
        for micro in made:
            groups = batch.prompt_groups(micro.rows)
            assert len(micro.rows) == 1 or groups.prompt_mask.sum() + groups.completion_mask.sum() <= 60


def test_a_budget_that_repeats_prompts_is_pointed_out(reasoner):
    module = grpo(reasoner, batch=BatchPlan(4, 8, update_token_budget=1))
    with pytest.warns(UserWarning, match="update_token_budget is 1, in which few completions fit"):
        fit(module, 1)


class Judge(FunctionReward):
    """Waits as long as the last call asked, and remembers on which threads it was called."""

    def __call__(self, batch):
        self.seen.append((threading.current_thread().name, len(batch.rows)))
        return super().__call__(batch)


def test_rewards_that_wait_score_while_more_is_generated(reasoner):
    weights_of = []
    for waits in (False, True):
        judge = Judge(digits, waits=waits)
        judge.seen = []
        module = grpo(reasoner, rewards=[judge], batch=BatchPlan(4, 4, rollout_micro_batch=8))
        fit(module, 2)
        assert [size for _, size in judge.seen] == ([2] * 4 if waits else [4] * 2)
        assert all((name == "MainThread") != waits for name, _ in judge.seen)
        assert torch.equal(module.last_rollout.rewards["digits"], judge(module.last_rollout))
        weights_of.append(weights(module))
    assert torch.isfinite(weights_of[1]).all()


def test_a_failing_reward_on_a_thread_stops_the_run(reasoner):
    def broken(completions):
        return [float("inf")] * len(completions)

    module = grpo(reasoner, rewards=[FunctionReward(broken, waits=True)], batch=BatchPlan(4, 4, rollout_micro_batch=4))
    with pytest.raises(ConfigError, match="'broken'"):
        fit(module, 1)


class Shifted(EmbeddedEngine):
    """An engine whose log-probs are off by a constant."""

    def matches(self, policy):
        return False

    def generate(self, *given, **options):
        batch = super().generate(*given, **options)
        batch.behaviour_logprobs = batch.behaviour_logprobs + self.shift * batch.action_mask
        return batch


@pytest.mark.parametrize(("shift", "factor"), [(0.0, 1.0), (0.5, math.exp(-0.5)), (-0.2, math.exp(0.2)), (-3.0, 2.0)])
def test_another_engines_samples_are_weighted_by_the_truncated_ratio(reasoner, shift, factor):
    """With a constant gap the whole gradient is multiplied by min(exp(-shift), cap): SGD's step shows it."""
    steps = []
    for given in (None, shift):
        engine = EmbeddedEngine() if given is None else Shifted()
        engine.shift = given
        module = grpo(
            reasoner,
            engine=engine,
            kl=KLPenalty(0.0),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
            max_grad_norm=None,
        )
        module.configure_model()
        before = weights(module).clone()
        fit(module, 1)
        steps.append(weights(module) - before)
    assert torch.allclose(steps[1], factor * steps[0], rtol=1e-3, atol=1e-6)
    if shift:
        assert float(module.trainer.callback_metrics["train/importance"]) == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize("lora", [None, LoRA(r=4, alpha=8)])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(reasoner, tmp_path, lora):
    def adam(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2)

    L.seed_everything(3)
    whole = grpo(reasoner, optimizer=adam, lora=lora, batch=BatchPlan(4, 4, updates_per_rollout=2))
    fit(whole, 12)
    first = grpo(reasoner, optimizer=adam, lora=lora, batch=BatchPlan(4, 4, updates_per_rollout=2))
    trainer = fit(first, 6)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert lora is None or all("lora_" in name for name in saved)
    torch.manual_seed(999)
    second = grpo(reasoner, optimizer=adam, lora=lora, batch=BatchPlan(4, 4, updates_per_rollout=2))
    fit(second, 12, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(whole), weights(second))
    assert not torch.equal(weights(whole), weights(first))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_one_completion_a_prompt_and_its_running_mean_survive_a_resume(reasoner, tmp_path, decay):
    def made():
        return grpo(reasoner, advantage=RunningMean(decay), batch=BatchPlan(4, 1))

    whole, first, second = made(), made(), made()
    fit(whole, 2)
    fit(first, 1).save_checkpoint(tmp_path / "half.ckpt")
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)["advantage"] == {"baseline": first.advantage.baseline}
    fit(second, 2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(whole), weights(second)) and not torch.equal(weights(whole), weights(first))
    assert whole.advantage.baseline == second.advantage.baseline != first.advantage.baseline
    rewards = whole.last_rollout.rewards["digits"]
    assert torch.equal(whole.last_rollout.advantages, rewards - first.advantage.baseline)
    forgetful = made()
    forgetful.advantage.load_state_dict = lambda state: None
    fit(forgetful, 2, ckpt_path=tmp_path / "half.ckpt")
    assert not torch.equal(weights(whole), weights(forgetful)), "the state matters"


def test_a_reward_with_a_memory_sees_training_rollouts_only_and_survives_a_resume(reasoner, tmp_path):
    class Counting(FunctionReward):
        def __init__(self):
            super().__init__(digits)
            self.seen: list[str] = []

        def score(self, batch):
            return [value + 0.1 * len(self.seen) for value in super().score(batch)]

        def observe(self, batch):
            self.seen += [row["id"] for row in batch.rows]

        def state_dict(self):
            return {"seen": list(self.seen)}

        def load_state_dict(self, state):
            self.seen = list(state.get("seen", []))

    def made():
        # Through a mixture, which must pass the memory on.
        inner = Counting()
        return grpo(reasoner, rewards=[PerTask({"default": inner})], advantage=RunningMean(0.9)), inner

    (whole, all_seen), (first, half_seen), (second, resumed) = made(), made(), made()
    fit(whole, 4)
    fit(first, 2).save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["rewards"]
    assert saved == {"per_task": {"default": {"seen": half_seen.seen}}} and len(half_seen.seen) == 2 * 4
    fit(second, 4, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.seen == all_seen.seen and len(resumed.seen) == 4 * 4
    assert torch.equal(weights(whole), weights(second))


def test_a_reward_sees_those_before_it_and_shows_metrics_before_it_learns(reasoner):
    class Doubled(FunctionReward):
        def __init__(self):
            super().__init__(digits, name="doubled")
            self.seen = 0

        def score(self, batch):
            return 2 * batch.rewards["digits"]

        def metrics(self, batch):
            return {"doubled_rows": float(len(batch.rewards["doubled"])), "doubled_seen": float(self.seen)}

        def observe(self, batch):
            self.seen += 1

    module = grpo(reasoner, rewards=[FunctionReward(digits), Doubled()])
    trainer = fit(module, 2)
    rollout = module.last_rollout
    assert torch.equal(rollout.rewards["doubled"], 2 * rollout.rewards["digits"]) and bool(
        rollout.rewards["doubled"].any()
    )
    assert float(trainer.callback_metrics["train/doubled_rows"]) == len(rollout.finish_reasons)
    assert float(trainer.callback_metrics["train/doubled_seen"]) == 1


def test_off_policy_updates_clip(reasoner):
    module = grpo(
        reasoner,
        batch=BatchPlan(4, 4, updates_per_rollout=4),
        loss=ClippedSurrogate(0.0, 0.0),
        optimizer=sgd(1.0),
    )
    fit(module, 4)
    assert float(module.trainer.callback_metrics["train/clip_fraction"]) > 0


def test_mistakes_are_refused_before_a_model_is_loaded():
    with pytest.raises(ConfigError, match="group_size is 1"):
        GRPO(PolicyParams("x"), [FunctionReward(digits)], batch=BatchPlan(4, 1))
    for advantage in (RunningMean(), GlobalNorm(), ReinforcePlusPlus()):
        GRPO(PolicyParams("x"), [FunctionReward(digits)], batch=BatchPlan(4, 1), advantage=advantage)
    with pytest.raises(ConfigError, match="ReinforcePlusPlus compares"):
        GRPO(
            PolicyParams("x"),
            [FunctionReward(digits)],
            batch=BatchPlan(4, 1),
            advantage=ReinforcePlusPlus("group"),
        )
    with pytest.raises(ConfigError, match="normalise_rewards compares"):
        GRPO(
            PolicyParams("x"),
            [FunctionReward(digits)],
            batch=BatchPlan(4, 1),
            advantage=GlobalNorm(),
            shaping=Shaping(normalise_rewards=True),
        )
    with pytest.raises(ConfigError, match="no rewards"):
        GRPO(PolicyParams("x"), [])
    with pytest.raises(ConfigError, match="share a name"):
        GRPO(PolicyParams("x"), [FunctionReward(digits), FunctionReward(digits)])
    with pytest.raises(ConfigError, match="zero expected gradient"):
        KLPenalty(0.1, "k1", "loss")


def test_a_prompt_longer_than_the_context_is_refused(reasoner):
    module = grpo(reasoner, sampling=SamplingParams(max_new_tokens=400))
    with pytest.raises(ConfigError, match="exceeds the model's context of 256"):
        fit(module, 1)
