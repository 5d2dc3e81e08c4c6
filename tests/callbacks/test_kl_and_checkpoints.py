"""KL control and rollout-counting checkpoints, in a real trainer."""

import errno
from types import SimpleNamespace

import lightning as L
import pytest
from lightning.fabric.plugins import TorchCheckpointIO

from callbacks import AdaptiveEntropy, AdaptiveKL, FixedKL, RolloutCheckpoint, ScheduledKL
from datamodules import ArithmeticPrompts
from lightning_modules import Evaluation, KLPenalty
from objectives.kl import adapted_coefficient
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.checkpoints import damage
from support.errors import ConfigError
from tests.helpers import adamw, brevity, build, fit


class Watch(L.Callback):
    def __init__(self):
        self.coefficients, self.kls = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.coefficients.append(pl_module.kl.coefficient)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.kls.append(float(trainer.callback_metrics["train/kl"]))


class HalfWritten(TorchCheckpointIO):
    """Writes one checkpoint and half of another."""

    def __init__(self, ended_by):
        self.ended_by, self.written = ended_by, 0

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        super().save_checkpoint(checkpoint, path, storage_options)
        self.written += 1
        if self.written == 2:
            path.write_bytes(path.read_bytes()[:1000])
            raise self.ended_by


def run(model, folder, callbacks, rollouts=4, updates=1, kl=0.04, **options):
    short = SamplingParams(max_new_tokens=6)
    module = build(
        model,
        [FunctionReward(brevity)],
        batch=BatchPlan(prompts_per_rollout=4, group_size=4, updates_per_rollout=updates),
        sampling=short,
        kl=KLPenalty(coefficient=kl),
        evaluation=Evaluation(sampling=short),
        optimizer=adamw(3e-3),
    )
    fit(
        module,
        rollouts * updates,
        callbacks,
        data=ArithmeticPrompts(train_size=64, val_size=8),
        folder=folder,
        seed=0,
        **options,
    )
    return module


def test_the_adaptive_coefficient_follows_zieglers_rule(reasoner, tmp_path):
    watch = Watch()
    module = run(reasoner, tmp_path, [watch, AdaptiveKL(target=0.01, horizon=100), RolloutCheckpoint(keep=None)])
    assert watch.kls[0] == pytest.approx(0, abs=1e-6), "the first rollout's policy is the reference"
    expected = [0.04]
    for kl in watch.kls:
        expected.append(expected[-1] * (1 + max(-0.2, min(0.2, kl / 0.01 - 1)) * 16 / 100))
    assert [*watch.coefficients, module.kl.coefficient] == pytest.approx(expected)
    assert expected[1] < 0.04 < max(expected) or expected[-1] < expected[1], "it moved"
    resumed = Watch()
    run(
        reasoner,
        tmp_path,
        [resumed, AdaptiveKL(target=0.01, horizon=100)],
        rollouts=5,
        ckpt_path=tmp_path / "local/checkpoints/rollout_000004.ckpt",
    )
    assert resumed.coefficients == pytest.approx([module.kl.coefficient]), (
        "a resumed run continues with the coefficient it had reached"
    )


class Bonuses(L.Callback):
    """The entropy, and the coefficient of the bonus that the rollout used."""

    def __init__(self):
        self.entropies, self.bonuses = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.bonuses.append(pl_module.shaping.entropy_bonus)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.entropies.append(float(trainer.callback_metrics["train/entropy"]))


@pytest.mark.parametrize(("target", "direction"), [(50.0, 1), (1e-9, -1)])
def test_the_entropy_bonus_moves_towards_its_target_and_goes_on_after_a_resume(reasoner, tmp_path, target, direction):
    def adaptive():
        return AdaptiveEntropy(target=target, step=0.01, limits=(0.0, 0.025))

    watch, resumed = Bonuses(), Bonuses()
    module = run(reasoner, tmp_path, [watch, adaptive(), RolloutCheckpoint(keep=None)], rollouts=3)
    assert all((entropy < target) == (direction > 0) for entropy in watch.entropies)
    rising = [0.0, 0.01, 0.02, 0.025]  # from the module's own 0, and not beyond the limit
    expected = rising if direction > 0 else [0.0] * 4
    assert [*watch.bonuses, module.shaping.entropy_bonus] == pytest.approx(expected)
    checkpoint = tmp_path / "local/checkpoints/rollout_000003.ckpt"
    run(reasoner, tmp_path, [resumed, adaptive()], rollouts=4, ckpt_path=checkpoint)
    assert resumed.bonuses == pytest.approx(expected[-1:])
    with pytest.raises(ConfigError, match="AdaptiveEntropy: target is 0"):
        AdaptiveEntropy(target=0)


def test_the_fixed_coefficient_wins_over_the_configuration(reasoner, tmp_path):
    watch = Watch()
    run(reasoner, tmp_path, [watch, FixedKL(0.5)], rollouts=2)
    assert watch.coefficients == [0.5, 0.5]


def test_a_schedule_counts_rollouts_and_goes_on_after_a_resume(reasoner, tmp_path):
    def schedule():
        return ScheduledKL(start=0.1, end=0.02, rollouts=4)

    watch, resumed = Watch(), Watch()
    run(reasoner, tmp_path, [schedule(), watch, RolloutCheckpoint(keep=None)], rollouts=3, updates=2)
    assert watch.coefficients == pytest.approx([0.1, 0.08, 0.06])
    checkpoint = tmp_path / "local/checkpoints/rollout_000003.ckpt"
    run(reasoner, tmp_path, [schedule(), resumed], rollouts=6, updates=2, ckpt_path=checkpoint)
    assert resumed.coefficients == pytest.approx([0.04, 0.02, 0.02])
    with pytest.raises(ConfigError, match="rollouts >= 1"):
        ScheduledKL(0.1, 0.0, 0)


@pytest.mark.parametrize("callback", [AdaptiveKL(0.1), FixedKL(0.1), ScheduledKL(0.1, 0.2, 5)])
def test_kl_control_without_a_reference_is_refused(reasoner, tmp_path, callback):
    with pytest.raises(ConfigError, match="keeps no reference"):
        run(reasoner, tmp_path, [callback], kl=0.0)


def test_a_new_run_leaves_older_checkpoints_of_a_shared_folder_alone(reasoner, tmp_path):
    shared = tmp_path / "shared"
    run(reasoner, tmp_path, [RolloutCheckpoint(folder=str(shared), keep=1)], rollouts=4)
    run(reasoner, tmp_path, [RolloutCheckpoint(folder=str(shared), keep=1)], rollouts=1)
    assert sorted(path.name for path in shared.iterdir()) == ["rollout_000001.ckpt", "rollout_000004.ckpt"]


def test_the_adapted_coefficient_is_never_negative():
    assert adapted_coefficient(0.1, 0.0, 1.0, rows=128, horizon=10) == 0.0


def test_checkpoints_count_rollouts_and_old_ones_go(reasoner, tmp_path):
    run(reasoner, tmp_path, [RolloutCheckpoint(every_n_rollouts=2, keep=2)], rollouts=7, updates=2)
    names = sorted(path.name for path in (tmp_path / "local/checkpoints").iterdir())
    assert names == ["rollout_000006.ckpt", "rollout_000007.ckpt"]


def test_a_full_disk_leaves_the_older_checkpoint(reasoner, tmp_path):
    folder = tmp_path / "local/checkpoints"
    with pytest.raises(
        ConfigError,
        match=r"rollout 2 cannot be written to .*No space left.*last complete checkpoint is .*rollout_000001\.ckpt",
    ):
        run(
            reasoner,
            tmp_path,
            [RolloutCheckpoint(every_n_rollouts=1, keep=1)],
            plugins=[HalfWritten(OSError(errno.ENOSPC, "No space left on device"))],
        )
    assert [path.name for path in folder.iterdir()] == ["rollout_000001.ckpt"] and damage(
        folder / "rollout_000001.ckpt"
    ) is None
    run(reasoner, tmp_path, [RolloutCheckpoint(every_n_rollouts=1, keep=1)], ckpt_path=folder / "rollout_000001.ckpt")
    assert [path.name for path in folder.iterdir()] == ["rollout_000004.ckpt"]


def test_an_interrupted_save_leaves_the_older_checkpoint_alone(reasoner, tmp_path):
    folder = tmp_path / "local/checkpoints"
    with pytest.raises(SystemExit):  # Lightning's answer to Ctrl+C
        run(
            reasoner,
            tmp_path,
            [RolloutCheckpoint(every_n_rollouts=1, keep=1)],
            plugins=[HalfWritten(KeyboardInterrupt())],
        )
    assert [path.name for path in folder.iterdir()] == ["rollout_000001.ckpt"] and damage(
        folder / "rollout_000001.ckpt"
    ) is None


def test_folders_of_shards_are_replaced_and_deleted_as_files_are(tmp_path):
    progress = SimpleNamespace(total_batch_idx=0)
    trainer = SimpleNamespace(
        loggers=[], is_global_zero=True, fast_dev_run=False, fit_loop=SimpleNamespace(epoch_loop=progress), written=0
    )

    def save_checkpoint(path):
        path.mkdir(parents=True)
        trainer.written += 1
        (path / ".metadata").write_text(str(trainer.written))

    trainer.save_checkpoint = save_checkpoint
    folder = tmp_path / "checkpoints"
    callback = RolloutCheckpoint(keep=1, folder=str(folder))
    callback.on_train_end(trainer, None)
    callback.last_saved = -1  # as after a validation
    callback.on_train_end(trainer, None)
    assert [path.name for path in folder.iterdir()] == ["rollout_000001.ckpt"]
    assert (folder / "rollout_000001.ckpt/.metadata").read_text() == "2"
    progress.total_batch_idx = 1
    callback.on_train_end(trainer, None)
    assert [path.name for path in folder.iterdir()] == ["rollout_000002.ckpt"]
