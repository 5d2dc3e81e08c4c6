"""Checkpoints that count rollouts."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from support.errors import ConfigError
from support.files import flush_to_disk, remove
from tracking.logger import PatientMLFlowLogger
from tracking.runs import run_folder


class RolloutCheckpoint(Checkpoint):
    """Save the whole training state every n rollouts, at the end, and when the process is asked to stop (SIGTERM, a cluster's preemption; Ctrl+C).

    Lightning's ModelCheckpoint counts optimiser steps and only looks at a rollout's end, so with several steps a rollout it
    saves seldom or never. A file is written beside its place, flushed to the disk and renamed: whatever happens, what stands there is whole. Where a
    validation follows a rollout, the state after the validation is saved, so that a resumed run neither skips nor repeats it; for that reason SIGTERM
    lets a validation end. Ctrl+C does the same; a second one stops at once and saves nothing.

    Args:
        every_n_rollouts: 0 saves only at the end and on SIGTERM.
        keep: newest checkpoints of this run that are kept; None keeps all.
        folder: where to; <run folder>/checkpoints by default.

    Raises:
        ConfigError: when a checkpoint cannot be written; the older ones stay as they were.
    """

    def __init__(self, every_n_rollouts: int = 0, keep: int | None = 2, folder: str | None = None) -> None:
        if every_n_rollouts < 0 or (keep is not None and keep < 1):
            raise ConfigError(
                f"RolloutCheckpoint: needs every_n_rollouts >= 0 and keep >= 1, got {every_n_rollouts} and {keep}."
            )
        self.every_n_rollouts, self.keep, self.folder = every_n_rollouts, keep, folder
        self.last_saved = -1
        self.saved: list[str] = []  # names in the folder
        self.asked_by = 0  # the signal's number

    def state_dict(self) -> dict[str, Any]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved = list(state_dict["saved"])

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # Lightning's handler, installed after this hook, would tell the other processes from within, while they wait for something else,
        # and end a validation half-way.
        trainer._signal_connector._sigterm_notifier_fn = self._note
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._interrupted)

    def _note(self, signum: int, *_: Any) -> None:
        self.asked_by = signum

    def _interrupted(self, signum: int, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._note(signum)
        print(
            "\nCtrl+C: the run ends after this rollout, and its state is saved. Press it again to stop at once.",
            file=sys.stderr,
            flush=True,
        )

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if signal.getsignal(signal.SIGINT) == self._interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _asked(self, trainer: L.Trainer) -> bool:
        """Whether one of the processes was asked to stop; all of them know it from here on."""
        asked = torch.tensor(float(self.asked_by), device=trainer.strategy.root_device)
        self.asked_by = int(trainer.strategy.reduce(asked, reduce_op="max"))
        return bool(self.asked_by)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.folder) if self.folder else run_folder(trainer) / "checkpoints"

    def _done(self, trainer: L.Trainer) -> int:
        return trainer.fit_loop.epoch_loop.total_batch_idx + 1

    def _save(self, trainer: L.Trainer) -> None:
        done = self._done(trainer)
        if trainer.fast_dev_run or done == self.last_saved:  # type: ignore[attr-defined]
            return
        folder = self._folder(trainer)
        path = folder / f"rollout_{done:06d}.ckpt"
        temporary = path.with_suffix(".partial")
        older = [name for name in self.saved if name != path.name]
        self.saved = [*older, path.name][-(self.keep or 0) :]
        try:
            trainer.save_checkpoint(temporary)
            for logger in trainer.loggers:
                if isinstance(logger, PatientMLFlowLogger):
                    logger.keep()  # before the checkpoint has its name: what it holds is not trained, and so not logged, again
            if trainer.is_global_zero:
                flush_to_disk(temporary)
                if (
                    path.is_dir()
                ):  # of shards, saved again after a validation; a folder is not replaced by renaming another
                    os.replace(path, path.with_suffix(".replaced"))
                os.replace(temporary, path)
                remove(path.with_suffix(".replaced"))
                flush_to_disk(folder)
                for name in older[: len(older) + 1 - len(self.saved)]:
                    remove(folder / name)
        except BaseException as error:
            self.saved = older
            if trainer.is_global_zero:
                remove(temporary)
            if not isinstance(
                error, OSError | RuntimeError
            ):  # torch reports a full disk as a RuntimeError; a second Ctrl+C is none
                raise
            whole = f"The last whole one is {folder / older[-1]}" if older else "There is no older one of this run"
            raise ConfigError(
                f"the checkpoint after rollout {done} cannot be written to {path}: {error}. {whole}; make room or name another folder "
                "(RolloutCheckpoint.folder), then go on from it with --ckpt_path."
            ) from error
        self.last_saved = done

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning's own rule, because a resumed run asks it whether a validation is still to come and then leaves that one out.
        if trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            return
        asked = self._asked(trainer)
        if asked or (self.every_n_rollouts and self._done(trainer) % self.every_n_rollouts == 0):
            self._log(trainer)
            self._save(trainer)
        if asked:
            trainer._signal_connector.received_sigterm = True

    def _log(self, trainer: L.Trainer) -> None:
        """Lightning logs a rollout after this hook: one that is killed in between would have a checkpoint behind the rollout, and no metrics of it."""
        connector = trainer._logger_connector
        if connector.should_update_logs:
            metrics = connector.metrics["log"]  # on all processes, which reduce them together
            scalars = convert_tensors_to_scalars(metrics) | {"epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                if isinstance(logger, PatientMLFlowLogger):
                    logger.log_metrics(scalars, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        done, asked = self._done(trainer), self._asked(trainer)
        if done and (asked or (self.every_n_rollouts and done % self.every_n_rollouts == 0) or done == self.last_saved):
            self.last_saved = -1  # what the validation has taught other callbacks belongs into it
            self._save(trainer)
        if asked:
            trainer._signal_connector.received_sigterm = True

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """The state was saved where it is between two rollouts; here Lightning has counted one more of them than a run that goes on would."""
        if (
            isinstance(exception, SIGTERMException)
            and trainer.state.fn == "fit"
            and self._done(trainer) == self.last_saved
        ):
            exception.code = 128 + self.asked_by
            if trainer.is_global_zero:
                print(
                    f"{signal.Signals(self.asked_by).name}: the state after rollout {self.last_saved} is in {self._folder(trainer) / self.saved[-1]}; go on with --ckpt_path last.",
                    flush=True,
                )

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._save(trainer)
