"""A resumed run with other settings of optimiser and scheduler: this run's act, or the run is refused by name."""

import functools

import lightning as L
import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CyclicLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    SequentialLR,
)

from callbacks import RolloutCheckpoint
from datamodules import Demonstrations
from lightning_modules import SFT
from lightning_modules.core.resumed_settings import schedule
from policies import PolicyParams
from rewards import FunctionReward
from rollouts import BatchPlan
from support.errors import ConfigError
from tests.helpers import adamw, build, digits, fit, sgd, weights


def cosine(steps):
    return lambda optimizer: CosineAnnealingLR(optimizer, steps)


def warm_up(optimizer):
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, 1.0, 2), CosineAnnealingLR(optimizer, 6)], [2])


def falling(optimizer):
    return LambdaLR(optimizer, lambda step: 0.5**step)


BEFORE = {"optimizer": adamw(1e-3, 0.1), "lr_scheduler": cosine(8)}
CHANGES = {
    "nothing": {},
    "lr": {"optimizer": adamw(1e-2, 0.1)},
    "weight decay": {"optimizer": adamw(1e-3, 0.0)},
    "length": {"lr_scheduler": cosine(20)},
    "both": {"optimizer": adamw(1e-2, 0.1), "lr_scheduler": cosine(20)},
    "another scheduler": {"lr_scheduler": warm_up},
    "a function": {"lr_scheduler": falling},
    "no scheduler": {"lr_scheduler": None},
}


class Settings(L.Callback):
    """Learning rate and weight decay of every rollout's update."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *others):
        group = trainer.optimizers[0].param_groups[0]
        self.seen.append((group["lr"], group["weight_decay"]))


def grpo(model, **settings):
    return build(model, [FunctionReward(digits)], batch=BatchPlan(4, 4, updates_per_rollout=2), **settings)


def sft(model, **settings):
    return SFT(PolicyParams(model), **settings)


def run(make, model, steps, settings, callbacks=(), **options):
    data = Demonstrations("arithmetic", 8, 64, 8, seed=1) if make is sft else None
    module, seen = make(model, **settings), Settings()
    fit(module, steps, [seen, *callbacks], data=data, seed=1, **options)
    return module, seen.seen


@pytest.fixture(scope="module")
def started(reasoner, tmp_path_factory):
    """The checkpoint of each kind of module after its second rollout, by module and whether it had a scheduler."""
    checkpoints = {}
    for make in (grpo, sft):
        for scheduled in (True, False):
            folder = tmp_path_factory.mktemp("checkpoint")
            saving = RolloutCheckpoint(every_n_rollouts=2, folder=str(folder))
            settings = BEFORE if scheduled else BEFORE | {"lr_scheduler": None}
            run(make, reasoner, 4 if make is grpo else 2, settings, [saving])
            checkpoints[make, scheduled] = folder / "rollout_000002.ckpt"
    return checkpoints


@pytest.mark.parametrize("make", [grpo, sft])
@pytest.mark.parametrize("change", CHANGES)
def test_the_second_runs_settings_act(reasoner, started, capsys, make, change):
    """As if they had been those of the run from its beginning."""
    after = BEFORE | CHANGES[change]
    steps = 8 if make is grpo else 4
    _, whole = run(make, reasoner, steps, after)
    capsys.readouterr()
    _, resumed = run(make, reasoner, steps, after, ckpt_path=started[make, True])
    assert len(resumed) == 2 and resumed == [pytest.approx(settings, rel=1e-6) for settings in whole[2:]]
    assert ("Resumed with other optimiser settings" in capsys.readouterr().out) == (change not in ("nothing",))


@pytest.mark.parametrize("make", [grpo, sft])
def test_a_scheduler_may_be_added(reasoner, started, make):
    steps = 8 if make is grpo else 4
    _, whole = run(make, reasoner, steps, BEFORE)
    _, resumed = run(make, reasoner, steps, BEFORE, ckpt_path=started[make, False])
    assert resumed == [pytest.approx(settings, rel=1e-6) for settings in whole[2:]]


def test_what_a_callback_changed_stays(reasoner, tmp_path):
    class Halve(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.optimizers[0].param_groups[0]["lr"] /= 2

    settings = {"optimizer": adamw(1e-3, 0.1)}
    saving = RolloutCheckpoint(every_n_rollouts=2, folder=str(tmp_path))
    run(grpo, reasoner, 4, settings, [Halve(), saving])
    _, resumed = run(grpo, reasoner, 6, {"optimizer": adamw(1e-3, 0.0)}, ckpt_path=tmp_path / "rollout_000002.ckpt")
    assert resumed == [(0.25e-3, 0.0)]


@pytest.mark.parametrize("make", [grpo, sft])
def test_another_optimiser_is_refused_by_name(reasoner, started, make):
    with pytest.raises(ConfigError, match=r"state of AdamW .* which this run's SGD .*ExportPolicy"):
        run(make, reasoner, 8, BEFORE | {"optimizer": sgd(0.1)}, ckpt_path=started[make, True])


def test_an_unchanged_run_ends_as_an_undisturbed_one(reasoner, started):
    whole, _ = run(grpo, reasoner, 8, BEFORE)
    resumed, _ = run(grpo, reasoner, 8, BEFORE, ckpt_path=started[grpo, True])
    assert torch.equal(weights(whole), weights(resumed))


def power(step, base=0.5):
    return base**step


class Falling:
    """A function with a setting, which its scheduler's state keeps; `part` has no text of its own."""

    def __init__(self, base, part=None):
        self.base, self.part = base, part or Falling(base, self)

    def __call__(self, step):
        return self.base**step


def changed_halving(base):
    """A user's scheduler whose code changes, and nothing else."""

    def get_lr(self):
        return [rate * base for rate in self.base_lrs]

    return lambda optimizer: type("Halving", (LambdaLR,), {"get_lr": get_lr})(optimizer, power)


FUNCTIONS = {
    "lambda": lambda base: lambda optimizer: LambdaLR(optimizer, lambda step: base**step),
    "partial": lambda base: lambda optimizer: LambdaLR(optimizer, functools.partial(power, base=base)),
    "object": lambda base: lambda optimizer: LambdaLR(optimizer, Falling(base)),
    "method": lambda base: lambda optimizer: LambdaLR(optimizer, Falling(base).__call__),
    "several": lambda base: lambda optimizer: LambdaLR(optimizer, [functools.partial(power, base=base)]),
    "inside": lambda base: (
        lambda optimizer: SequentialLR(
            optimizer, [LambdaLR(optimizer, functools.partial(power, base=base)), CosineAnnealingLR(optimizer, 6)], [2]
        )
    ),
    "chained": lambda base: (
        lambda optimizer: ChainedScheduler(
            [MultiplicativeLR(optimizer, functools.partial(power, base=base)), LinearLR(optimizer)]
        )
    ),
    "cyclic": lambda base: (
        lambda optimizer: CyclicLR(
            optimizer, 0.1, 1.0, scale_fn=functools.partial(power, base=base), cycle_momentum=False
        )
    ),
    "cyclic by name": lambda base: (
        lambda optimizer: CyclicLR(optimizer, 0.1, 1.0, mode="exp_range", gamma=base, cycle_momentum=False)
    ),
    "class": changed_halving,
    "number": lambda base: lambda optimizer: LinearLR(optimizer, base),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_schedule_is_told_apart_by_its_functions_and_equals_itself(name):
    def of(base):
        return schedule(FUNCTIONS[name](base)(torch.optim.SGD([torch.rand(3, requires_grad=True)], 0.1)))

    assert of(0.5) == of(0.5) != of(0.7) and of(0.5).split(" ")[0].endswith(("LR", "Halving", "Scheduler"))


def test_another_argument_of_a_partial_function_acts_and_is_reported(reasoner, tmp_path, capsys):
    def settings(base):
        return {"optimizer": sgd(0.1), "lr_scheduler": FUNCTIONS["partial"](base)}

    saving = RolloutCheckpoint(every_n_rollouts=1, folder=str(tmp_path))
    run(grpo, reasoner, 2, settings(0.5), [saving])
    for base, reported in ((0.5, False), (0.25, True)):
        capsys.readouterr()
        _, seen = run(grpo, reasoner, 4, settings(base), ckpt_path=tmp_path / "rollout_000001.ckpt")
        assert ("the schedule of LambdaLR" in capsys.readouterr().out) == reported
        assert seen[0][0] == pytest.approx(0.1 * base**2)
