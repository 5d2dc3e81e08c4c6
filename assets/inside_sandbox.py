"""Runs a program on many inputs. The text of this file runs inside the sandbox.

A program that reads and prints has a process per input. The calls of a function share one until a call fails, as the
tests of `rewards.CodeTests` do.

`assets/many_inputs.py` puts `packed` and `unpacked` of rewards.sandbox.guest before it and a call of `main` behind it.
It uses the standard library only. Inputs are lines of JSON on standard input, results are lines of JSON on standard
output. The program can do harm to the results of its own run only.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import sys
import time
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, NoReturn

    from rewards.sandbox.guest import packed, unpacked

OUT_OF_MEMORY, NO_FUNCTION, NOT_PLAIN = 120, 121, 122
STATUSES = {0: "ok", OUT_OF_MEMORY: "memory", NO_FUNCTION: "no function", NOT_PLAIN: "not plain data"}


def main(source: str, entry: str | None, wall_s: float, cpu_s: int, output_bytes: int, max_failures: int) -> None:
    """Run the program on every line of standard input, until it has failed too often.

    Args:
        source: text of the program.
        entry: the function that is called; None for a program that reads standard input and prints.
        wall_s: seconds per input. cpu_s: CPU seconds per input and process.
        output_bytes: maximum size of one output.
        max_failures: number of failures after which the other inputs are left out.
    """
    try:
        code = compile(source, "program.py", "exec", dont_inherit=True)
    except Exception:
        tell(["syntax error", None, 0.0])
        return
    values, place, failures = [json.loads(line) for line in sys.stdin], 0, 0
    while place < len(values) and failures < max_failures:
        reads, writes = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reads)
            answer(code, entry, values[place:], writes, cpu_s)
        os.close(writes)
        status, output, seconds = watched(process, reads, wall_s, output_bytes, entry is not None)
        os.close(reads)
        lines = output.split(b"\n")[:-1] if entry else [output] if status == "ok" else []
        long = next((number for number, line in enumerate(lines) if len(line) > output_bytes), None)
        if long is not None:
            lines, status = lines[:long], "output"
        for line in lines[: len(values) - place]:
            tell(["ok", line.decode(errors="replace"), seconds / len(lines)])
        place += len(lines)
        if place < len(values) and (entry or status != "ok"):
            tell(["error" if status == "ok" else status, None, 0.0])
            place, failures = place + 1, failures + 1


def tell(result: list[Any]) -> None:
    """Write one line to standard output."""
    line = memoryview(json.dumps(result).encode() + b"\n")
    while line:
        line = line[os.write(1, line) :]


def watched(process: int, reads: int, wall_s: float, output_bytes: int, by_line: bool) -> tuple[str, bytes, float]:
    """(status, output, CPU seconds) of a process, which is killed at its limits; they hold per line if `by_line`."""
    deadline, limit, size = time.monotonic() + wall_s, "", 0
    output = bytearray()
    while not limit:
        ready, _, _ = select.select([reads], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(reads, 65536) if ready else b""
        if ready and not more:
            break
        output += more
        size = len(output) - output.rfind(b"\n") - 1 if by_line else len(output)
        if size > output_bytes:
            limit = "output"
        elif by_line and b"\n" in more:
            deadline = time.monotonic() + wall_s
        elif time.monotonic() >= deadline:
            limit = "timeout"
    while not limit:  # it has closed its output and may still run
        ended, code, usage = os.wait4(process, os.WNOHANG)
        if ended:
            break
        if time.monotonic() >= deadline:
            limit = "timeout"
        time.sleep(0.0005)
    if limit:
        for kill in (os.killpg, os.kill):
            try:
                kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        _, code, usage = os.wait4(process, 0)
    seconds = usage.ru_utime + usage.ru_stime
    exit_code = os.waitstatus_to_exitcode(code)
    if not limit and exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
        limit = "timeout"
    return limit or STATUSES.get(exit_code, "error"), bytes(output), seconds


def answer(code: types.CodeType, entry: str | None, values: list[Any], writes: int, cpu_s: int) -> NoReturn:
    """The process of the first input, or of all for a function."""
    try:
        try:
            os.setsid()
        except OSError:
            pass  # a machine with fewer protections: the sandbox kills by the process group
        if entry is None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        null = os.open("/dev/null", os.O_RDWR)
        source = null
        if entry is None:
            path = f"/tmp/input_{os.getpid()}"
            with open(path, "wb") as file:
                file.write(values[0].encode())
            source = os.open(path, os.O_RDONLY)
            os.unlink(path)
        for number, target in ((0, source), (1, null if entry else writes), (2, null)):
            os.dup2(target, number)
        writes = os.dup2(writes, 3)
        os.closerange(4 if entry else 3, 256)
        sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)
        if entry is None:
            printed(code, module)
        exec(code, module.__dict__)
        function = module.__dict__.get(entry)
        if not callable(function):
            os._exit(NO_FUNCTION)
        for value in values:
            result = function(*unpacked(value))
            try:
                text = json.dumps(packed(result)).encode() + b"\n"
            except (TypeError, ValueError, RecursionError):
                os._exit(NOT_PLAIN)
            view = memoryview(text)
            while view:
                view = view[os.write(writes, view) :]
        os._exit(0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException:  # also SystemExit of a called function
        os._exit(1)


def printed(code: types.CodeType, module: types.ModuleType) -> NoReturn:
    """Run a program that reads and prints to its end as the interpreter does: threads, exit functions, exit code."""
    status: Any = 0
    try:
        exec(code, module.__dict__)
    except SystemExit as error:
        status = error.code
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not sys.stdout.closed:
        sys.stdout.flush()
    os._exit(0 if status is None else status & 255 if isinstance(status, int) else 1)
