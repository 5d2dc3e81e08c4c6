"""The small process between the trainer and an untrusted program: it sets up the sandbox, watches, kills and reports.

    trainer ── launcher ── first process inside ── program [, caller]

It is a fresh interpreter without threads, because only such a process may create a user namespace, and uses the
standard library only, so that it starts quickly. The first process inside is process 1 of the namespace: when it ends,
the kernel ends all other processes inside. It receives the program before the caller, so that the program's memory
never contains the caller's text.
"""

import atexit
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import guest
import kernel
import seccomp

WATCH_S = 0.02  # seconds between two measurements of the memory


class Refused(Exception):
    """A protection is not available on this machine."""


def read_part() -> Any:
    """One length-prefixed JSON value of standard input."""

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += (more := os.read(0, size - len(data)))
            if not more:
                os._exit(1)  # the trainer is gone
        return data

    return json.loads(exactly(int.from_bytes(exactly(8), "big")))


def main() -> None:
    report = int(sys.argv[1])
    os.set_inheritable(report, False)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # Ctrl+C is for the trainer; it closes standard input, which ends this
        signal.signal(number, signal.SIG_IGN)
    spec = read_part()
    try:
        result = launched(spec)
    except Refused as error:
        result = {"status": "refused", "missing": error.args[0]}
    except OSError as error:
        result = {"status": "broken", "message": str(error)}
    os.write(report, json.dumps(result).encode())
    os._exit(0)


def launched(spec: dict[str, Any]) -> dict[str, Any]:
    missing: dict[str, str] = {}
    kernel.die_with_parent()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    spec["stdin_file"], spec["null"] = stdin_file(spec["stdin"]), os.open("/dev/null", os.O_RDWR)
    spec["number"], spec["user_processes"] = os.getpid(), 0
    try:
        if "namespaces" in spec["without"]:
            raise OSError("left out")
        kernel.own_namespaces()
    except OSError as error:
        missing["namespaces"] = str(error)
        if not spec["allow_weaker"]:
            raise Refused(missing) from None
        spec["user_processes"] = threads_of_user()
    spec["missing"] = missing
    ours, theirs = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(ours)
        kept(first_process, spec, theirs)
    os.close(theirs)
    try:
        return watched(first, ours, spec)
    finally:
        kill_all(first)


def kept(body: Callable[..., object], *arguments: Any) -> NoReturn:
    """Run the body of a child process, which must never return into its parent's code."""
    try:
        body(*arguments)
    except Exception as error:
        os.write(arguments[1], json.dumps({"broken": f"{type(error).__name__}: {error}"}).encode() + b"\n")
    os._exit(1)


def stdin_file(text: str) -> int:
    """A file in memory that is open for reading only."""
    made = os.memfd_create("stdin")
    with open(made, "wb", closefd=False) as file:
        file.write(text.encode(errors="replace"))
    opened = os.open(f"/proc/self/fd/{made}", os.O_RDONLY)
    os.close(made)
    return opened


def threads_of_user() -> int:
    """Number of the user's processes and threads, which all count against the limit without a namespace."""
    count = 0
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and entry.stat().st_uid == os.geteuid():
                count += len(os.listdir(f"/proc/{entry.name}/task"))
        except OSError:
            pass  # it ended meanwhile
    return count


# ---- outside: watch, kill, report ----------------------------------------------------------------------------------


def watched(first: int, reports: int, spec: dict[str, Any]) -> dict[str, Any]:
    """Wait until the program ends, exceeds its time or memory, or the trainer closes standard input."""
    limits, missing = spec["limits"], spec["missing"]
    started = ended = time.monotonic()
    poll, lines, code = select.poll(), b"", None
    poll.register(reports, select.POLLIN)
    poll.register(0, 0)  # only for its end
    ready = False
    status = "error"
    while True:
        events = dict(poll.poll(WATCH_S * 1000))
        ended = time.monotonic()
        if 0 in events:
            status = "stopped"
            break
        if reports in events:
            lines += (more := os.read(reports, 65536))
            while b"\n" in lines:
                line, _, lines = lines.partition(b"\n")
                told = json.loads(line)
                if "broken" in told:
                    raise OSError(told["broken"])
                if "ready" in told and not ready:
                    ready, started = True, time.monotonic()
                missing |= told.get("missing", {})
                code = told.get("code", code)
            if missing and not spec["allow_weaker"]:
                raise Refused(missing)
            if not more:
                break
        if ready and ended - started > limits["wall_s"]:
            status = "timeout"
            break
        if not ready and ended - started > 30:
            raise OSError("the sandbox was not ready within 30 s; the machine is overloaded")
        if ready and resident_bytes(first) > limits["memory_mb"] << 20:
            status = "memory"
            break
    if code is not None:
        named = {0: "ok", guest.OUT_OF_MEMORY: "memory", -signal.SIGXCPU: "timeout"}
        status = named.get(
            code, "timeout" if code == -signal.SIGKILL and ended - started > limits["cpu_s"] else "error"
        )
    return {
        "status": status,
        "code": code,
        "seconds": ended - started,
        "missing": missing if spec["allow_weaker"] else {},
    }


def children(pid: int) -> list[int]:
    try:
        return [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in open(f"/proc/{pid}/task/{task}/children").read().split()
        ]
    except OSError:
        return []


def resident_bytes(pid: int) -> int:
    """Memory of a process's descendants; pages shared since a fork count for each of them."""
    total = 0
    for child in children(pid):
        try:
            with open(f"/proc/{child}/statm") as file:
                total += int(file.read().split()[1]) * resource.getpagesize()
        except OSError:
            continue
        total += resident_bytes(child)
    return total


def kill_all(first: int) -> None:
    """Kill the first process and all others: by the namespace, or by the process group, which they cannot leave."""
    for kill in (os.kill, os.killpg):
        try:
            kill(first, signal.SIGKILL)
        except OSError:
            pass
    while True:  # all orphans become children of this process
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            for child in children(os.getpid()):
                os.kill(child, signal.SIGKILL)
            time.sleep(0.001)


# ---- inside ---------------------------------------------------------------------------------------------------------


def first_process(spec: dict[str, Any], reports: int) -> None:
    """Set up the root, start the program and the caller, wait for the process whose exit code counts."""
    kernel.die_with_parent()
    os.setsid()
    if not spec["missing"]:
        try:
            kernel.own_root(
                [*spec["readable"], "/dev/null", "/dev/zero", "/dev/urandom"],
                spec["hidden"],
                spec["limits"]["disk_mb"] << 20,
            )
            spec["folder"] = "/tmp"
        except OSError as error:
            spec["missing"]["namespaces"] = str(error)
    if spec["missing"]:
        tell(reports, missing=spec["missing"])
        if not spec["allow_weaker"]:
            os._exit(1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    requests, replies = (os.pipe(), os.pipe()) if spec["called"] else ((-1, -1), (-1, -1))
    last = os.fork()
    if last == 0:
        kept(program, spec, reports, requests[0], replies[1])
    if spec["called"]:
        last = os.fork()
        if last == 0:
            kept(caller, spec, reports, requests[1], replies[0])
        for end in (*requests, *replies):
            os.close(end)
    for number in (0, 1, 2):
        os.dup2(spec["null"], number)  # so that the end of all writers is seen
    while True:
        pid, status = os.wait()
        if pid == last:
            tell(reports, code=os.waitstatus_to_exitcode(status))
            os._exit(0)


def tell(reports: int, **what: Any) -> None:
    os.write(reports, json.dumps(what).encode() + b"\n")


def program(spec: dict[str, Any], reports: int, requests: int, replies: int) -> None:
    settle(spec, reports, {requests, replies}, quiet=spec["called"], ready=True)
    if spec["called"]:
        guest.serve(spec["program"], requests, replies)
        os._exit(0)
    finish(spec["program"], {})


def caller(spec: dict[str, Any], reports: int, requests: int, replies: int) -> None:
    source = read_part()
    settle(spec, reports, {requests, replies}, quiet=False, ready=False)
    finish(source, {"call": guest.call_through(requests, replies), "CallFailed": guest.CallFailed})


def finish(source: str, names: dict[str, Any]) -> NoReturn:
    """Run a program to its end as the interpreter does: wait for threads, run exit functions, flush, exit."""
    code: Any = 0
    try:
        guest.execute(source, names)
    except SystemExit as error:
        code = error.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    try:
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.__stdout__, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except BaseException:
        os._exit(1)
    os._exit((code or 0) & 255)


def settle(spec: dict[str, Any], reports: int, used: set[int], quiet: bool, ready: bool) -> None:
    """The last steps before untrusted code: files, limits, user, privileges, Landlock, system calls.

    None of them can be reversed.
    """
    missing: dict[str, str] = {}
    limits, without = spec["limits"], spec["without"]
    weaker = bool(spec["missing"])
    os.dup2(spec["null"] if quiet else spec["stdin_file"], 0)
    if quiet:
        os.dup2(spec["null"], 1)
        os.dup2(spec["null"], 2)
    edges = [2, *sorted(number for number in used | {reports} if number > 2), 1 << 20]
    for low, high in zip(edges, edges[1:], strict=False):
        os.closerange(low + 1, high)
    kernel.bound_capabilities()
    kernel.become_nobody(spec["number"])
    kernel.die_with_parent()
    if not os.access(os.__file__, os.R_OK):
        raise OSError(
            f"a user without privileges cannot read {os.path.dirname(os.__file__)}; do not run as root, or use another "
            "Python"
        )
    os.chdir(spec["folder"])
    os.umask(0o077)
    mb, processes = 1 << 20, limits["processes"] + spec["user_processes"] + (0 if spec["root"] else 3)
    for name, value in {
        "CPU": int(limits["cpu_s"]) or 1,
        "AS": limits["memory_mb"] * mb,
        "FSIZE": limits["file_mb"] * mb,
        "NPROC": processes,
        "NOFILE": 64,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
    }.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard_limit = resource.getrlimit(kind)[1]
        soft = value if hard_limit == resource.RLIM_INFINITY else min(value, hard_limit)
        resource.setrlimit(kind, (soft, soft + 1 if name == "CPU" and hard_limit == resource.RLIM_INFINITY else soft))
    kernel.drop_privileges()
    kernel.prctl(
        kernel.PR_SET_DUMPABLE, 0
    )  # no attaching and no core, whatever this machine does with cores; the change of user had reset it
    version = 0
    try:
        if "landlock" in without:
            raise OSError("left out")
        outside = [path for path in spec["readable"] if weaker]
        version = kernel.landlock(outside if weaker else ["/"], [spec["folder"], *([] if weaker else ["/dev/null"])])
    except OSError as error:
        if weaker:
            missing["landlock"] = str(error)
    try:
        if "seccomp" in without:
            raise OSError("left out")
        seccomp.install(leaving=weaker, signals=weaker and version < 6)
    except OSError as error:
        missing["seccomp"] = str(error)
    if missing:
        tell(reports, missing=missing)
        if not spec["allow_weaker"]:
            os._exit(1)
    if ready:
        tell(reports, ready=True)
    os.close(reports)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
