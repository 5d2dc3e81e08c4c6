"""Lightning's options: each works or is refused in one paragraph, as docs/lightning_options.md says."""

import inspect
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.plugins import MixedPrecision

from cli.application import lightning_refusal
from rewards import FunctionReward
from rollouts import BatchPlan, SamplingParams
from support.errors import ConfigError
from tests.helpers import build, digits, quiet_trainer, sums, weights

PAGE = Path(__file__).parents[2] / "docs/lightning_options.md"
#: quiet_trainer's own settings, which barebones refuses
UNSET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"))
EPOCHS = {"max_epochs": 2, "max_steps": -1, "limit_train_batches": 1}
VALIDATED = {"validate_every": 1}


#: first cell of the table -> the trainer's options, and the module's parts
OPTIONS = {
    "accelerator=cpu": {"accelerator": "cpu"},
    "accumulate_grad_batches=2": {"accumulate_grad_batches": 2},
    "barebones": {"barebones": True, **UNSET},
    "benchmark": {"benchmark": True},
    "callbacks: BackboneFinetuning": {"callbacks": [callbacks.BackboneFinetuning()]},
    "callbacks: BatchSizeFinder": {"callbacks": [callbacks.BatchSizeFinder()]},
    "callbacks: DeviceStatsMonitor": {"callbacks": [callbacks.DeviceStatsMonitor()], "logger": True},
    "callbacks: EarlyStopping": {"callbacks": [callbacks.EarlyStopping("val/reward", mode="max")], **VALIDATED},
    "callbacks: EarlyStopping on an unknown metric": {"callbacks": [callbacks.EarlyStopping("unknown")], **VALIDATED},
    "callbacks: EarlyStopping under val/ without a validation": {"callbacks": [callbacks.EarlyStopping("val/reward")]},
    "callbacks: EMAWeightAveraging": {"callbacks": [callbacks.EMAWeightAveraging(decay=0.5)]},
    "callbacks: GradientAccumulationScheduler": {"callbacks": [callbacks.GradientAccumulationScheduler({0: 2})]},
    "callbacks: LearningRateFinder": {"callbacks": [callbacks.LearningRateFinder()]},
    "callbacks: LearningRateMonitor": {"callbacks": [callbacks.LearningRateMonitor()], "logger": True},
    "callbacks: ModelCheckpoint": {
        "callbacks": [callbacks.ModelCheckpoint(monitor="val/reward")], "enable_checkpointing": True, **VALIDATED
    },
    "callbacks: ModelCheckpoint on an unknown metric": {
        "callbacks": [callbacks.ModelCheckpoint(monitor="unknown")], "enable_checkpointing": True, **VALIDATED
    },
    "callbacks: ModelPruning": {"callbacks": [callbacks.ModelPruning("l1_unstructured", amount=0.5)]},
    "callbacks: StochasticWeightAveraging": {"callbacks": [callbacks.StochasticWeightAveraging(0.1)]},
    "callbacks: Timer": {"callbacks": [callbacks.Timer("00:01:00:00")]},
    "check_val_every_n_epoch=2": {"check_val_every_n_epoch": 2, "limit_val_batches": 1, **EPOCHS},
    "default_root_dir": {},
    "detect_anomaly": {"detect_anomaly": True},
    "deterministic": {"deterministic": True},
    "devices=1": {"devices": 1},
    "enable_autolog_hparams=false": {"enable_autolog_hparams": False},
    "enable_checkpointing": {"enable_checkpointing": True},
    "enable_model_summary": {"enable_model_summary": True},
    "enable_progress_bar": {"enable_progress_bar": True},
    "fast_dev_run=2": {"fast_dev_run": 2},
    "gradient_clip_algorithm": {"gradient_clip_algorithm": "value"},
    "gradient_clip_val=1.0": {"gradient_clip_val": 1.0},
    "inference_mode=false": {"inference_mode": False, **VALIDATED},
    "limit_predict_batches=1": {"limit_predict_batches": 1},
    "limit_test_batches=1": {"limit_test_batches": 1},
    "limit_train_batches=1": {"limit_train_batches": 1},
    "limit_val_batches=1": {"limit_val_batches": 1, "val_check_interval": 1, "check_val_every_n_epoch": None},
    "log_every_n_steps=2": {"log_every_n_steps": 2},
    "logger": {"logger": True},
    "max_epochs=1": {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 2},
    "max_steps=2": {"max_steps": 2},
    "max_time": {"max_time": "00:01:00:00"},
    "min_epochs=1": {"min_epochs": 1},
    "min_steps=2": {"min_steps": 2},
    "model_registry": {"model_registry": "owner/model"},
    "num_nodes=1": {"num_nodes": 1},
    "num_sanity_val_steps=2": {"num_sanity_val_steps": 2, **VALIDATED},
    "overfit_batches=1": {"overfit_batches": 1},
    "plugins": {"plugins": []},
    # As on an accelerator; on a CPU Lightning replaces it by bf16-mixed.
    "precision=16-mixed": {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", enabled=False))},
    "precision=16-true": {"precision": "16-true"},
    "precision=32-true": {"precision": "32-true"},
    "precision=64-true": {"precision": "64-true"},
    "precision=bf16-mixed": {"precision": "bf16-mixed"},
    "precision=bf16-true": {"precision": "bf16-true"},
    "profiler=simple": {"profiler": "simple"},
    "reload_dataloaders_every_n_epochs=1": {"reload_dataloaders_every_n_epochs": 1, **EPOCHS},
    "strategy=auto": {"strategy": "auto"},
    "sync_batchnorm": {"sync_batchnorm": True},
    "use_distributed_sampler, one process": {"use_distributed_sampler": True},
    "val_check_interval=0.5": {
        "val_check_interval": 0.5, "check_val_every_n_epoch": 1, "limit_val_batches": 1, "limit_train_batches": 2
    },
    "model.lr_scheduler: ReduceLROnPlateau": {"lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau},
    "model.optimizer: LBFGS": {"optimizer": torch.optim.LBFGS},
}  # fmt: skip


class Seen(L.Callback):
    """The weights and prompts of every rollout."""

    def __init__(self):
        self.weights, self.prompts = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(weights(pl_module).clone())
        self.prompts.append([row["id"] for row in batch])


def two_rollouts(model, folder, options):
    options = dict(options)
    parts = {name: options.pop(name) for name in ("lr_scheduler", "optimizer") if name in options}
    module = build(
        model, [FunctionReward(digits)], batch=BatchPlan(2, 4), sampling=SamplingParams(max_new_tokens=6), **parts
    )
    seen = Seen()
    trainer = quiet_trainer(
        options.pop("max_steps", 2), [*options.pop("callbacks", []), seen], folder=folder, **options
    )
    L.seed_everything(0, verbose=False)
    try:
        trainer.fit(module, datamodule=sums(train_size=16, val_size=2))
    except Exception as error:
        refusal = error if isinstance(error, ConfigError) else lightning_refusal(error)
        if refusal is None:
            raise
        return seen, refusal
    return seen, None


def documented():
    """First cell -> (outcome, first update, note) of the page's table."""
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.*?) ?\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: cells for name, *cells in rows}


@pytest.mark.filterwarnings("ignore")
def test_the_table_says_what_every_option_does(reasoner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, _ = two_rollouts(reasoner, tmp_path, {})
    assert not torch.equal(*plain.weights), "otherwise any two updates would be the same"
    table, wrong = documented(), []
    assert table.keys() == OPTIONS.keys()
    for name, options in OPTIONS.items():
        seen, refusal = two_rollouts(reasoner, tmp_path, options)
        if refusal is None:
            outcome, update = "works", "same" if torch.equal(seen.weights[0], plain.weights[0]) else "other"
            assert len(seen.weights) == 2 and seen.prompts == plain.prompts, name
        else:
            outcome, update = "refused" if not seen.weights else "refused after a rollout", "-"
            assert "\n" not in str(refusal), name
            keys = re.findall(r"`(.+?)`", table[name][2])
            assert keys or seen.weights, f"{name}: the page does not say what to set instead"
            assert all(key in str(refusal) for key in keys), f"{name}: {refusal}"
        if [outcome, update] != table[name][:2]:
            wrong.append(f"{name}: {outcome}, {update}; {refusal}")
    assert not wrong, "\n".join(wrong)


def test_every_argument_of_the_trainer_is_in_the_table():
    arguments = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    assert arguments == {re.split(r"[=:,]", name)[0] for name in documented() if not name.startswith("model.")}


def test_an_average_of_the_weights_is_what_remains(reasoner, tmp_path):
    """EMAWeightAveraging, which the refusal of Lightning's SWA advises."""
    average = callbacks.EMAWeightAveraging(decay=0.5)
    module = build(reasoner, [FunctionReward(digits)], batch=BatchPlan(2, 2))
    seen = Seen()
    quiet_trainer(3, [average, seen], folder=tmp_path).fit(module, datamodule=sums())
    assert not torch.equal(weights(module), seen.weights[-1])
