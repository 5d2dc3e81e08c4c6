"""`--ckpt_path last` under a logger without run ids, and the single-GPU overlays as they ship."""

import os

import lightning as L
import pytest

from tests.helpers import run_config


class Dies(L.Callback):
    """Ends the run like a kill, after some rollouts."""

    def on_train_batch_start(self, trainer, *others):
        if trainer.fit_loop.epoch_loop.total_batch_idx >= int(os.environ["DIES_AFTER"]):
            raise KeyboardInterrupt


CALLBACKS = (
    '[{"class_path": "callbacks.RolloutCheckpoint", "init_args": {"every_n_rollouts": 2}}, '
    '{"class_path": "tests.resume.test_last_checkpoint.Dies"}]'
)


def test_last_is_found_after_two_kills_by_a_logger_without_run_ids(reasoner, tmp_path, monkeypatch, capsys):
    """The second run dies before its first checkpoint, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    settings = {
        "trainer.logger": '{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}',
        "trainer.enable_checkpointing": "true",
        "trainer.max_steps": 4,
        "trainer.callbacks": CALLBACKS,
    }

    def run(after, *arguments):
        monkeypatch.setenv("DIES_AFTER", str(after))
        cli = run_config(["grpo"], reasoner, *arguments, **settings)
        return cli.trainer.fit_loop.epoch_loop.total_batch_idx

    for after, *arguments in ((2,), (2, "--ckpt_path=last")):
        with pytest.raises(SystemExit):
            run(after, *arguments)
    capsys.readouterr()
    assert run(99, "--ckpt_path=last") >= 3
    shown = capsys.readouterr().out
    assert "rollout_000002.ckpt" in shown and "starts from the beginning" not in shown


@pytest.mark.parametrize("overlay", ["one_gpu_lora", "one_gpu_full"])
def test_the_single_gpu_overlays_take_their_steps(reasoner, tmp_path, monkeypatch, overlay):
    """With a tiny model on a CPU; precision, optimiser and clipping are the overlay's."""
    monkeypatch.chdir(tmp_path)
    unchanged = ["trainer.enable_checkpointing"]
    cli = run_config(["grpo", f"scale/{overlay}"], reasoner, unchanged=unchanged, **{"trainer.max_steps": 2})
    assert cli.trainer.global_step == 2 and cli.trainer.precision == "bf16-mixed"
    assert float(cli.trainer.callback_metrics["train/skipped_updates"]) == 0
