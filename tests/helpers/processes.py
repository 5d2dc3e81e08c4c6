"""Processes of their own, forked from one that has imported everything: a process costs no imports."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.helpers.preload"])


def _begin(target: Callable[..., object], arguments: tuple[Any, ...], environment: Mapping[str, str], log: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    target(*arguments)


def start(target: Callable[..., object], *arguments: Any, log: Path, **environment: str) -> Any:
    """Begin `target(*arguments)` in a process with this test's environment and `environment`; it prints into `log`."""
    process = FORKS.Process(target=_begin, args=(target, arguments, {**os.environ, **environment}, str(log)))
    process.start()
    return process


def finish(process: Any, seconds: float = 300) -> int:
    """Wait for its end. Returns the exit status."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the run hangs: it has not ended after {seconds:.0f} seconds")
    return process.exitcode


def run_on_two(target: Callable[..., object], *arguments: Any, log: Path, seconds: float = 300) -> list[int]:
    """`target` on two processes that find each other as those of torchrun do. Returns their exit statuses.

    Args:
        seconds: time limit, after which both are killed and the test fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [start(target, *arguments, log=log, RANK=rank, LOCAL_RANK=rank, **group) for rank in ("0", "1")]
    try:
        return [finish(process, seconds) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
