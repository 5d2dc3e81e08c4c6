"""Calls on threads that do not keep the program alive: one that hangs cannot be ended, only left behind."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


def done(function: Callable[..., T], *arguments: Any, future: "Future[T] | None" = None) -> "Future[T]":
    """A call that is made now, as a future with its result or its exception."""
    future = Future() if future is None else future
    try:
        future.set_result(function(*arguments))
    except BaseException as error:  # also SystemExit, which must not end a thread without a word
        future.set_exception(error)
    return future


def on_thread(function: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Begin a call on a thread of its own."""
    future: Future[T] = Future()
    threading.Thread(target=done, args=(function, *arguments), kwargs={"future": future}, daemon=True).start()
    return future


def _work(calls: "SimpleQueue[tuple[Any, ...] | None]") -> None:
    while (call := calls.get()) is not None:
        function, arguments, future = call
        done(function, *arguments, future=future)
        del call, function, arguments, future  # a waiting thread must not keep what it worked on


class Threads:
    """At most so many calls at the same time; further ones wait. The threads end with this object.

    `concurrent.futures` has no such pool: its threads keep the program alive.
    """

    def __init__(self, count: int) -> None:
        self.count, self.started = count, 0
        self.calls: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()

    def submit(self, function: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Make a call as soon as a thread is free."""
        future: Future[T] = Future()
        self.calls.put((function, arguments, future))
        if self.started < self.count:
            self.started += 1
            threading.Thread(target=_work, args=(self.calls,), daemon=True).start()
        return future

    def __del__(self) -> None:
        for _ in range(self.started):
            self.calls.put(None)
