"""ProRL's defaults, dynamic sampling and the reference's resets, on an untrained model."""

import itertools

import lightning as L
import pytest
import torch

from callbacks import Plateau, ReferenceReset, RolloutCheckpoint
from lightning_modules import GRPO, KLPenalty, ProRL
from lightning_modules.core.dynamic_sampling import has_signal, refilled
from policies import LoRA, PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan, RolloutBatch
from support.errors import ConfigError
from tests.helpers import adamw, build, digits, fit, sums


def rarely(completions):
    """Few groups of an untrained model hold a completion that begins with a digit."""
    return [float(text[:1].isdigit()) for text in completions]


def prorl(model, reward=digits, method=ProRL, **parts):
    small = {"kl": KLPenalty(coefficient=0.1), "optimizer": adamw(3e-2)}
    return build(model, [FunctionReward(reward)], method, **(small | parts))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


def test_the_defaults_are_the_papers(reasoner):
    module = ProRL(PolicyParams(reasoner), [FunctionReward(digits)])
    assert (module.batch.prompts_per_rollout, module.batch.group_size, module.batch.updates) == (256, 16, 4)
    assert (module.policy_loss.clip_low, module.policy_loss.clip_high) == (0.2, 0.4)
    assert module.sampling.temperature == 1.2 and module.kl.placement == "loss" and module.with_reference
    (group,) = module.optimizer_callable([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert group["lr"] == 2e-6


# ---- dynamic sampling ------------------------------------------------------------------------------------------------


def scored(names, rewards, ids=()):
    """A batch of groups of two one-token completions; the token tells the prompt."""
    rows = [{"id": name, "prompt": name} for name in names]
    tokens = torch.tensor([[ord(name)] for name in names for _ in range(2)])
    ones = torch.ones_like(tokens, dtype=torch.bool)
    return RolloutBatch(
        prompt_ids=torch.tensor([[ord(name)] for name in names]), prompt_mask=ones[::2],
        completion_ids=tokens, completion_mask=ones,
        action_mask=ones, behaviour_logprobs=-tokens.float(), finish_reasons=["eos"] * len(tokens), rows=rows,
        rewards={"r": torch.tensor([value for name in names for value in rewards[name]])},
    )  # fmt: skip


def test_signal_is_a_difference_within_the_group():
    batch = scored(
        "abcd", {"a": (0.1, 0.1), "b": (0.0, 1.0), "c": (float("nan"), 1.0), "d": (float("nan"), float("nan"))}
    )
    assert has_signal(batch.rewards["r"], batch).tolist() == [False, True, False, False]


def test_groups_without_signal_are_replaced_in_their_places_within_the_budget():
    rewards = {"a": (1, 1), "b": (0, 1), "c": (0, 0), "d": (1, 0), "e": (0, 0), "f": (0, 1), "g": (1, 0)}
    asked = []

    def sample(rows):
        asked.append([row["id"] for row in rows])
        return scored(asked[-1], rewards)

    def run(budget, names="abc"):
        asked.clear()
        spare = iter([{"id": name} for name in "bdefg"])  # b is in the batch already
        return refilled(scored(names, rewards), spare, budget, sample, lambda batch: batch.rewards["r"].float())

    full, sampled, metrics = run(10)
    assert asked == [["d", "e"], ["f"]]  # two are missing, e gives no signal, so one more is asked for
    assert [row["id"] for row in full.rows] == ["d", "b", "f"]
    assert [row["id"] for row in sampled.rows] == list("abcdef")
    assert full.completion_ids.flatten().tolist() == [ord(c) for c in "ddbbff"]  # whole groups, and everything of them
    assert full.behaviour_logprobs.flatten().tolist() == [-ord(c) for c in "ddbbff"]
    assert full.rewards["r"].tolist() == [1, 0, 0, 1, 0, 1]
    assert metrics == {"no_signal": pytest.approx(2 / 3), "no_signal_left": 0, "extra_prompts": 3, "extra_tokens": 6}
    part, _, metrics = run(1)
    assert [row["id"] for row in part.rows] == ["d", "b", "c"] and metrics["no_signal_left"] == pytest.approx(1 / 3)
    none, _, metrics = run(0)
    assert [row["id"] for row in none.rows] == ["a", "b", "c"] and metrics["extra_prompts"] == 0
    whole, _, metrics = run(5, "bd")
    assert asked == [] and metrics["no_signal"] == 0 and [row["id"] for row in whole.rows] == ["b", "d"]


def test_refilled_rollouts_repeat_and_raise_the_share_of_groups_with_signal(reasoner):
    def shares(refill):
        module = prorl(reasoner, rarely, batch=BatchPlan(4, 4, refill=refill))
        trainer = fit(module, 3)
        found = {
            name: float(trainer.callback_metrics.get(f"train/{name}", 0.0)) for name in ("no_signal", "no_signal_left")
        }
        return (
            found,
            weights(module),
            has_signal(module.totals(module.last_rollout), module.last_rollout).float().mean(),
        )

    (found, first, live), (again, second, _) = shares(3.0), shares(3.0)
    assert torch.equal(first, second) and found == again
    assert found["no_signal"] > 0.2 and found["no_signal_left"] < found["no_signal"]
    assert live == pytest.approx(1 - found["no_signal_left"])


def test_the_prompts_taken_in_are_not_those_of_the_rollout_and_differ_by_rollout_and_process(reasoner):
    from datamodules.samplers.prompt_sampler import PromptSampler

    def order(rank, *key):
        return list(itertools.islice(PromptSampler(50, 4, 3, rank, 2).spare(*key), 10))

    assert order(0, 5) == order(0, 5) and sorted(order(0, 5)) != order(0, 5)
    assert order(0, 5) != order(1, 5) and order(0, 5) != order(0, 6)


def test_refilling_is_refused_where_equal_rewards_teach_something(assistant):
    from lightning_modules import AdaptThink

    with pytest.raises(ConfigError, match="AdaptThink learns from groups of equal rewards"):
        AdaptThink(PolicyParams(assistant), [FunctionReward(digits)], batch=BatchPlan(4, 4, refill=1.0))


# ---- resets ----------------------------------------------------------------------------------------------------------


class Watch(L.Callback):
    """KL and distance of policy and reference after every rollout, and the optimiser's moments before it."""

    def __init__(self):
        self.kl, self.moments = [], []

    def on_train_batch_start(self, trainer, *given):
        self.moments.append(len(trainer.optimizers[0].state))

    def on_train_batch_end(self, trainer, pl_module, *given):
        self.kl.append(float(trainer.callback_metrics["train/kl"]))


@pytest.mark.parametrize("lora", [None, LoRA(4, 8)], ids=["full", "lora"])
@pytest.mark.parametrize("forget", [True, False])
def test_a_period_resets_reference_and_optimiser(reasoner, lora, forget):
    reset, watch = ReferenceReset(every_n_rollouts=3, reset_optimizer=forget), Watch()
    module = prorl(reasoner, lora=lora)
    fit(module, 7, [reset, watch])
    assert [event["rollout"] for event in reset.history] == [3, 6]
    # The first rollout after a reset compares the policy with itself.
    assert watch.kl[3] == pytest.approx(0, abs=1e-6) and watch.kl[6] == pytest.approx(0, abs=1e-6)
    assert all(kl > 1e-5 for i, kl in enumerate(watch.kl) if i not in (0, 3, 6))
    assert (watch.moments[3] == 0) == forget and watch.moments[2] > 0


def test_a_ceiling_on_kl(reasoner):
    reset, watch = ReferenceReset(kl_ceiling=1e-3), Watch()
    fit(prorl(reasoner), 6, [reset, watch])
    assert (
        [event["rollout"] for event in reset.history]
        == [i + 1 for i, kl in enumerate(watch.kl[:-1]) if kl > 1e-3]
        != []
    )


@pytest.mark.parametrize(
    ("values", "plateau", "expected"),
    [
        ([0.1, 0.2, 0.2, 0.2, 0.3, 0.3], Plateau("val/reward", patience=2), [3]),
        ([0.1, 0.2, 0.21, 0.22, 0.5, 0.5], Plateau("val/reward", patience=3, min_gain=0.05), []),
        ([0.5, 0.45, 0.3, 0.4, 0.5, 0.4], Plateau("val/reward", patience=None, drop=0.15), [2]),
    ],
)
def test_a_plateau(reasoner, values, plateau, expected):
    class Told(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("val/reward", values[self.told], sync_dist=False)
            self.told += 1

    told = Told()
    told.told = 0
    reset = ReferenceReset(plateau=plateau)
    module = prorl(reasoner)
    module.validation_step = lambda *given: None
    fit(module, len(values), [told, reset], validate_every=1)
    assert [value for _, value in reset.curves["validation"]] == pytest.approx(values)
    assert [event["rollout"] - 1 for event in reset.history] == expected


@pytest.mark.parametrize("lora", [None, LoRA(4, 8)], ids=["full", "lora"])
@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_run_resets_when_the_whole_one_does(reasoner, lora, stop, tmp_path):
    whole, reset = prorl(reasoner, lora=lora), ReferenceReset(every_n_rollouts=3)
    fit(whole, 6, [reset])
    first = fit(prorl(reasoner, lora=lora), stop, [ReferenceReset(every_n_rollouts=3)])
    first.save_checkpoint(tmp_path / "some.ckpt")
    resumed, again = prorl(reasoner, lora=lora), ReferenceReset(every_n_rollouts=3)
    fit(resumed, 6, [again], ckpt_path=tmp_path / "some.ckpt")
    assert again.history == reset.history and again.curves == reset.curves
    assert dict(resumed.state_dict().items()).keys() == whole.state_dict().keys()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_run_resumed_where_a_validation_was_due_remembers_it(reasoner, tmp_path):
    def run(steps, folder, ckpt_path=None):
        reset = ReferenceReset(plateau=Plateau("val/reward", patience=1, min_gain=10.0))
        module = prorl(reasoner)
        saved = RolloutCheckpoint(every_n_rollouts=2, keep=None, folder=str(tmp_path / folder))
        fit(module, steps, [saved, reset], validate_every=2, ckpt_path=ckpt_path)
        return reset, module

    whole, module = run(7, "whole")
    assert [event["rollout"] for event in whole.history] == [4]
    for stop in (2, 4):
        resumed, again = run(7, f"rest{stop}", tmp_path / f"whole/rollout_{stop:06d}.ckpt")
        assert resumed.history == whole.history and resumed.curves == whole.curves
        assert torch.equal(weights(module), weights(again))


def test_what_cannot_work_is_refused(reasoner):
    with pytest.raises(ConfigError, match="no trigger"):
        ReferenceReset()
    with pytest.raises(ConfigError, match="patience"):
        Plateau(patience=0)
    with pytest.raises(ConfigError, match="measures KL"):
        fit(prorl(reasoner, method=GRPO, kl=KLPenalty()), 1, [ReferenceReset(every_n_rollouts=1)])
    with pytest.raises(ConfigError, match="'val/none', which validation does not log"):
        fit(prorl(reasoner), 2, [ReferenceReset(plateau=Plateau("val/none"))], validate_every=1)


def test_resets_are_tags_and_lines_of_the_mlflow_run(reasoner, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(
        "resets", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", artifact_location=str(tmp_path / "artifacts")
    )
    reset = ReferenceReset(every_n_rollouts=2)
    fit(prorl(reasoner), 3, [reset], data=sums((1,)), logger=logger, log_every_n_steps=1)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(logger.run_id).data.tags["reference_reset.1"] == "rollout 2: 2 rollouts"
    assert [file.path for file in client.list_artifacts(logger.run_id, "figures")] == ["figures/reference_resets.png"]
