"""Checkpoints that count rollouts."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from support.checkpoints import InPlaceCheckpointIO, rollouts_of, sweep, write_manifest
from support.errors import ConfigError
from support.files import flush_to_disk, remove, remove_unfinished
from support.locks import FolderLock
from tracking.logger import PatientMLFlowLogger
from tracking.runs import run_folder, settle_run_folder


class RolloutCheckpoint(Checkpoint):
    """Save the whole training state every n rollouts, at the end, and on SIGTERM (cluster preemption) or Ctrl+C.

    Lightning's ModelCheckpoint counts optimiser steps and only checks at the end of a rollout, so with several steps
    per rollout it saves seldom or never. This callback writes a temporary file beside its place, flushes it to disk and
    renames it, so a file with the final name is always complete. What a killed run left unfinished is removed at the
    next start, and a lock (.<folder>.lock) lets one run at a time write there. Where a validation follows a rollout,
    the state after the validation is saved, so that a resumed run neither skips nor repeats it; SIGTERM therefore waits
    for the validation to end. Ctrl+C does the same; a second Ctrl+C stops at once and saves nothing.

    Args:
        every_n_rollouts: rollouts between two checkpoints; 0 saves only at the end and on a stop signal.
        keep: number of latest checkpoints of this run that are kept; None keeps all.
        folder: target folder; <run folder>/checkpoints by default.

    Raises:
        ConfigError: when a checkpoint cannot be written; older checkpoints stay as they were.
    """

    def __init__(self, every_n_rollouts: int = 0, keep: int | None = 2, folder: str | None = None) -> None:
        if every_n_rollouts < 0 or (keep is not None and keep < 1):
            raise ConfigError(
                f"RolloutCheckpoint: every_n_rollouts is {every_n_rollouts} and keep is {keep}, but it needs "
                "every_n_rollouts >= 0 and keep >= 1 (or null to keep all). Change these arguments of "
                "callbacks.RolloutCheckpoint."
            )
        self.every_n_rollouts, self.keep, self.folder = every_n_rollouts, keep, folder
        self.last_saved = -1
        self.saved: list[str] = []  # file names in the folder
        self.asked_by = 0  # number of the signal that asked for a stop; 0 if none did
        self.lock: FolderLock | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"saved": self.saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Files of these names are deleted later, and a checkpoint may come from elsewhere.
        self.saved = [name for name in state_dict["saved"] if rollouts_of(str(name)) >= 0]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.fast_dev_run:
            self._occupy(trainer)
        # Lightning's handler, installed after this hook, would notify the other processes from inside the handler,
        # while they wait for another collective, and would end a validation half-way.
        trainer._signal_connector._sigterm_notifier_fn = self._note
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._interrupted)

    def _occupy(self, trainer: L.Trainer) -> None:
        """Lock the folder, and remove what a killed run left there. Raises ConfigError if another run has it."""
        has_run_folder = not self.folder or trainer.logger is not None  # otherwise an empty one would be left
        if has_run_folder:
            settle_run_folder(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = InPlaceCheckpointIO()
        problem = None
        if trainer.is_global_zero:
            self.lock = FolderLock(self._folder(trainer))
            try:
                self.lock.take()
                sweep(self._folder(trainer))
                if has_run_folder:
                    remove_unfinished(run_folder(trainer))
            except ConfigError as error:
                problem = str(error)
        if (problem := trainer.strategy.broadcast(problem)) is not None:
            raise ConfigError(problem)

    def _free(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def _note(self, signum: int, *_: Any) -> None:
        self.asked_by = signum

    def _interrupted(self, signum: int, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._note(signum)
        print(
            "\nCtrl+C: the run ends after this rollout and saves its state. Press Ctrl+C again to stop at once.",
            file=sys.stderr,
            flush=True,
        )

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if signal.getsignal(signal.SIGINT) == self._interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._free()

    def _asked(self, trainer: L.Trainer) -> bool:
        """Whether any process was asked to stop; tells all processes."""
        signal_number = torch.tensor(float(self.asked_by), device=trainer.strategy.root_device)
        self.asked_by = int(trainer.strategy.reduce(signal_number, reduce_op="max"))
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
                    # Before the checkpoint gets its name: its rollouts will not be trained, and so not logged, again.
                    logger.keep()
            if trainer.is_global_zero:
                if temporary.is_dir():
                    write_manifest(temporary)
                flush_to_disk(temporary)
                if path.exists() and (path.is_dir() or temporary.is_dir()):
                    # A folder of shards, saved again after a validation, or a file of that name; renaming does not
                    # replace a folder, or a file by a folder.
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
            # torch reports a full disk as a RuntimeError; a second Ctrl+C is neither of the two.
            if not isinstance(error, OSError | RuntimeError):
                raise
            usable = f"the last complete checkpoint is {folder / older[-1]}" if older else "this run has no older one"
            raise ConfigError(
                f"the checkpoint after rollout {done} cannot be written to {path}: {error}; {usable}. Free disk space "
                "or set RolloutCheckpoint.folder to another folder, then continue from a checkpoint with --ckpt_path."
            ) from error
        self.last_saved = done

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning's own rule: a resumed run uses it to decide whether a validation is due, and then skips that one.
        if trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            return
        asked = self._asked(trainer)
        if asked or self._due(trainer):
            self._log(trainer)
            self._save(trainer)
        if asked:
            trainer._signal_connector.received_sigterm = True

    def _due(self, trainer: L.Trainer) -> bool:
        """Whether the rollout that has ended is one to save after: an n-th one, or the last one.

        At the end of the training Lightning counts its epoch as finished, so that a run which goes on from there, with
        a higher `max_steps`, would leave out the rest of that epoch.
        """
        loop = trainer.fit_loop
        ends_epoch = loop.epoch_loop._num_ready_batches_reached()
        is_last = (
            _reached(trainer.global_step, loop.max_steps)
            or (ends_epoch and _reached(trainer.current_epoch + 1, loop.max_epochs))
            or (trainer.should_stop and loop._can_stop_early)
        )
        return is_last or bool(self.every_n_rollouts and self._done(trainer) % self.every_n_rollouts == 0)

    def _log(self, trainer: L.Trainer) -> None:
        """Log the rollout's metrics now.

        Lightning logs them after this hook. A run killed in between would have a checkpoint after the rollout and no
        metrics of it.
        """
        connector = trainer._logger_connector
        if connector.should_update_logs:
            metrics = connector.metrics["log"]  # on all processes, because reading it reduces over them
            scalars = convert_tensors_to_scalars(metrics) | {"epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                if isinstance(logger, PatientMLFlowLogger):
                    logger.log_metrics(scalars, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        done, asked = self._done(trainer), self._asked(trainer)
        if done and (asked or self._due(trainer) or done == self.last_saved):
            self.last_saved = -1  # save again: the validation has changed the state of other callbacks
            self._save(trainer)
        if asked:
            trainer._signal_connector.received_sigterm = True

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Report where the state was saved after a stop signal, and set the exit code.

        The state is not saved here: at this point Lightning has counted one rollout more than a resumed run would.
        """
        self._free()
        if (
            isinstance(exception, SIGTERMException)
            and trainer.state.fn == "fit"
            and self._done(trainer) == self.last_saved
        ):
            exception.code = 128 + self.asked_by
            if trainer.is_global_zero:
                path = self._folder(trainer) / self.saved[-1]
                print(
                    f"{signal.Signals(self.asked_by).name}: the state after rollout {self.last_saved} is in {path}; "
                    "continue with --ckpt_path last.",
                    flush=True,
                )

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._save(trainer)


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and 0 <= limit <= count
