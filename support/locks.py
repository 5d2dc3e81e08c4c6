"""A lock on a folder that names its holder, so that two processes do not write the same run."""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from support.errors import ConfigError
from support.files import parse_json

#: lock files that this process holds; opening one of them again and closing it would give the lock back (POSIX)
_held: set[Path] = set()
#: what a file system without locks answers
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """The lock .<folder>.lock beside a folder. The operating system releases it when the process ends, however it ends.

    It belongs to the process (POSIX): processes that it starts neither hold it nor keep it.

    Args:
        folder: what is written by one process at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder.with_name(f".{folder.name}.lock")
        self._handle: int | None = None

    def take(self) -> None:
        """Take the lock; does nothing where this process holds it already, or the file system has no locks.

        Raises:
            ConfigError: another process holds it, or the folder cannot be written to.
        """
        if self.path.absolute() in _held:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise ConfigError(
                f"the run's folder {self.folder.parent} cannot be written to: {error.strerror}. Make it writable, or "
                "choose another folder with --trainer.default_root_dir."
            ) from error
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 1000).decode(errors="replace")
            os.close(handle)
            if error.errno in _NO_LOCKS:
                return
            raise ConfigError(
                f"{self.folder} is being written by another run: {_described(holder)}. Wait until it has ended or stop "
                "it; to train beside it, start a run of its own without --ckpt_path last."
            ) from error
        os.ftruncate(handle, 0)
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.write(handle, json.dumps(facts).encode())
        self._handle = handle
        _held.add(self.path.absolute())

    def check(self) -> None:
        """Raise ConfigError if another process holds the lock, or the folder cannot be written to."""
        self.take()
        self.release()

    def release(self) -> None:
        """Give the lock back, if this object holds it."""
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None
            _held.discard(self.path.absolute())


def _described(holder: str) -> str:
    try:
        facts = parse_json(holder)
        return f"process {int(facts['pid'])} on {str(facts['host'])[:80]}, since {str(facts['since'])[:40]}"
    except (ValueError, KeyError, TypeError):
        return "a process that is just starting"
