"""Threads that are left behind: results, exceptions, how many at once, and their end."""

import gc
import subprocess
import sys
import threading
import time

import pytest

from support.threads import Threads, done, on_thread


def leave():
    raise SystemExit(3)


@pytest.mark.parametrize("begin", [done, on_thread, lambda *call: Threads(2).submit(*call)])
def test_a_call_has_its_result_or_its_exception(begin):
    assert begin(max, 2, 5).result(5) == 5
    with pytest.raises(SystemExit):
        begin(leave).result(5)


def test_so_many_calls_run_at_once_and_the_threads_end():
    active, most, lock, before = [0], [0], threading.Lock(), set(threading.enumerate())

    def call(number):
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        time.sleep(0.005)
        with lock:
            active[0] -= 1
        return number

    threads = Threads(3)
    assert [future.result(5) for future in [threads.submit(call, i) for i in range(30)]] == list(range(30))
    started = set(threading.enumerate()) - before  # threads of earlier tests may end meanwhile
    assert most[0] == 3 and len(started) == 3
    del threads
    gc.collect()
    deadline = time.monotonic() + 5
    while any(thread.is_alive() for thread in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in started)


def test_a_call_that_hangs_does_not_keep_the_program():
    code = "import threading; from support.threads import Threads, on_thread; wait = threading.Event().wait\n"
    code += "pool = Threads(1); pool.submit(wait); on_thread(wait); print('end')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and ended.stdout == "end\n"
