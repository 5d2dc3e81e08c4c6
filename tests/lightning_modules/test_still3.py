"""STILL-3: the schedule of beta, selection, masks and metrics, by hand."""

import json
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from callbacks import ReferenceReset, RolloutCheckpoint, ScheduledKL
from lightning_modules import KLPenalty, Still3
from objectives.selection import selected_rows
from policies import PolicyParams
from rewards import ActionBonus, FunctionReward, LengthBonus
from rewards.still3 import action_count
from rollouts import RolloutBatch, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, fit, run_config, sgd


class Early(FunctionReward):
    """Right if the first character is below P in the alphabet."""

    is_correctness = True

    def __init__(self):
        super().__init__(lambda completions: [float(text[:1] < "P") for text in completions], name="early")


def still3(model, **parts):
    small = {"sampling": SamplingParams(max_new_tokens=20), "kl": KLPenalty(coefficient=0.1), "optimizer": sgd(0.5)}
    return build(model, [Early()], Still3, **(small | parts))


class Coefficients(L.Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, *given):
        self.found.append(float(trainer.callback_metrics["train/kl_coefficient"]))


# ---- the fading KL ---------------------------------------------------------------------------------------------------


def test_beta_over_the_papers_500_updates():
    module = SimpleNamespace(kl=KLPenalty(1e-3), rollouts_done=0)
    schedule = ScheduledKL(start=1e-3, end=0.0, rollouts=500, shape="cosine")
    for done, beta in ((0, 1e-3), (125, 8.535534e-4), (250, 5e-4), (375, 1.464466e-4), (500, 0.0), (900, 0.0)):
        module.rollouts_done = done
        schedule.on_train_batch_start(None, module, None, 0)
        assert module.kl.coefficient == pytest.approx(beta, abs=1e-9)
    released = ScheduledKL(start=2e-3, end=1e-3, rollouts=500, shape="cosine")  # with the fixed term added once more
    module.rollouts_done = 500
    released.on_train_batch_start(None, module, None, 0)
    assert module.kl.coefficient == pytest.approx(1e-3)


def test_the_schedule_and_the_replaced_reference_over_a_resume(reasoner, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def run(steps, ckpt_path=None):
        seen, reset = Coefficients(), ReferenceReset(every_n_rollouts=2, reset_optimizer=False)
        saved = [] if ckpt_path else [RolloutCheckpoint(every_n_rollouts=1, keep=None, folder=str(tmp_path))]
        module = still3(reasoner)
        fit(module, steps, [ScheduledKL(0.1, 0.0, 4, "cosine"), reset, seen, *saved], ckpt_path=ckpt_path)
        return seen.found, reset.history, module.state_dict()

    whole, history, weights = run(5)
    assert whole == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-6) and [
        event["rollout"] for event in history
    ] == [2, 4]
    for stop in (1, 3):
        rest, again, end = run(5, str(tmp_path / f"rollout_{stop:06d}.ckpt"))
        assert rest == whole[stop:] and again == history
        assert all(torch.equal(value, end[name]) for name, value in weights.items())


# ---- what is learned from --------------------------------------------------------------------------------------------


def test_selection_by_hand():
    lengths = torch.tensor([9, 5, 3, 7, 2, 4, 8, 6, 5, 5, 1, 2])
    correct = torch.tensor([True, True, False, False, True, False, False, True, True, True, True, True])
    groups = torch.arange(3).repeat_interleave(4)
    # Means of group 0: 7 right, 5 wrong. Of group 1: 4 right, 6 wrong. Group 2 has nothing wrong.
    assert selected_rows(lengths, correct, groups, "questions").tolist() == [True] * 4 + [False] * 8
    # Group 0: longest right 9, shortest wrong 3. Group 1: 6 and 4.
    assert selected_rows(lengths, correct, groups, "responses").nonzero().flatten().tolist() == [0, 2, 5, 7]
    assert selected_rows(lengths, correct, groups, "none").all()
    shorter = torch.tensor([2, 3, 4, 5])
    assert not selected_rows(
        shorter, torch.tensor([True, True, False, False]), torch.zeros(4, dtype=torch.long), "responses"
    ).any()


@pytest.mark.parametrize("select", ["none", "questions", "responses"])
def test_only_selected_and_finished_rows_carry_loss(reasoner, monkeypatch, select):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    module = still3(reasoner, select=select)
    trainer = fit(module, 1)
    batch, found = module.last_rollout, {name: float(value) for name, value in trainer.callback_metrics.items()}
    lengths, texts = batch.lengths.tolist(), batch.completions
    right, cut = [text[:1] < "P" for text in texts], [reason == "length" for reason in batch.finish_reasons]
    expected = []
    for start in range(0, 16, 4):
        own = range(start, start + 4)
        long, short = [i for i in own if right[i]], [i for i in own if not right[i]]
        kept = set(own) if select == "none" else set()
        if (
            long
            and short
            and select == "questions"
            and sum(lengths[i] for i in long) / len(long) > sum(lengths[i] for i in short) / len(short)
        ):
            kept = set(own)
        if long and short and select == "responses":
            best, worst = max(long, key=lambda i: lengths[i]), min(short, key=lambda i: lengths[i])
            kept = {best, worst} if lengths[best] > lengths[worst] else set()
        expected += [i in kept and not cut[i] for i in own]
    assert module.loss_mask(batch).any(1).tolist() == expected
    assert 0 < sum(cut) < 16 and found["train/completion_ratio"] == pytest.approx(1 - sum(cut) / 16)
    assert found["train/learned_from"] == pytest.approx(sum(expected) / 16)
    assert found["train/length_correct"] == pytest.approx(
        sum(n for n, r in zip(lengths, right, strict=True) if r) / sum(right), rel=1e-5
    )
    assert found["train/length_wrong"] == pytest.approx(
        sum(n for n, r in zip(lengths, right, strict=True) if not r) / (16 - sum(right)), rel=1e-5
    )


# ---- the rewards that were found wanting -----------------------------------------------------------------------------


def test_length_and_action_rewards():
    words = ["however", "BUT wait", "", "Verify; alternatively, but butter waiting", "wait " * 25]
    assert [action_count(text) for text in words] == [1, 2, 0, 3, 25]
    ids = torch.ones(5, 6, dtype=torch.long)
    mask = torch.tensor([[True] * n + [False] * (6 - n) for n in (1, 2, 3, 6, 4)])
    batch = RolloutBatch(ids[:1], ids[:1] > 0, ids, mask, mask, ids.float(), ["eos"] * 5, [{"id": "1", "prompt": "?"}])
    batch._completions = words
    assert LengthBonus(scale=12)(batch).tolist() == pytest.approx([1 / 12, 2 / 12, 3 / 12, 6 / 12, 4 / 12])
    assert ActionBonus()(batch).tolist() == pytest.approx([1 / 20, 2 / 20, 0, 3 / 20, 1])
    assert ActionBonus(words=["but"], most=2)(batch).tolist() == [0, 0.5, 0, 0.5, 0]


def test_mistakes_are_named(reasoner):
    with pytest.raises(ConfigError, match="judges correctness"):
        Still3(PolicyParams(reasoner), [LengthBonus(10)])
    with pytest.raises(ConfigError, match="scale is 0"):
        LengthBonus(0)
    with pytest.raises(ConfigError, match="most >= 1"):
        ActionBonus(most=0)


def test_the_defaults_are_those_of_the_1_5b(reasoner):
    module = Still3(PolicyParams(reasoner), [Early()])
    assert (module.batch.prompts_per_rollout, module.batch.group_size, module.batch.updates) == (128, 8, 1)
    assert module.kl.coefficient == 1e-3 and module.shaping.mask_truncated and module.select == "none"
    (group,) = module.optimizer_callable([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert group["lr"] == 2e-6


def test_the_configuration_runs_with_the_length_bonus(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    bonus = [
        {"class_path": "rewards.ExactAnswer", "init_args": {"weight": 2.0}},
        {"class_path": "rewards.LengthBonus", "init_args": {"scale": 48}},
    ]
    changes = {
        "model.batch.group_size": 2,
        "model.sampling.max_new_tokens": 4,
        "model.rewards": json.dumps(bonus),
        "trainer.val_check_interval": 1,
    }
    cli = run_config(["still3"], reasoner, unchanged=["data.train_size", "trainer.limit_val_batches"], **changes)
    found = cli.trainer.callback_metrics
    assert (
        float(found["train/kl_coefficient"]) == pytest.approx(1e-3)
        and float(found["train/reward/length_bonus"]) <= 4 / 48 + 1e-6
    )
