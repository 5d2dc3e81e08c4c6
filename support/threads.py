"""Calls on threads that do not keep the program alive: one that hangs cannot be ended, only left behind."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def on_thread(function: Callable[..., T], *arguments: Any, limit: threading.Semaphore | None = None) -> "Future[T]":
    """Begin a call on a thread of its own; the future holds its result or its exception.

    Args:
        limit: how many of the calls that share it run at the same time.
    """
    future: Future[T] = Future()

    def call() -> None:
        if limit is not None:
            limit.acquire()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # also SystemExit, which must not end the thread without a word
            future.set_exception(error)
        finally:
            if limit is not None:
                limit.release()

    threading.Thread(target=call, daemon=True).start()
    return future


def done(function: Callable[..., T], *arguments: Any) -> "Future[T]":
    """A call made now, as a future."""
    future: Future[T] = Future()
    try:
        future.set_result(function(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future
