"""The sandbox for untrusted Python programs: `run(program)` in a process without network, files or privileges.

docs/sandbox.md lists the guarantees and their mechanisms. This package imports nothing of the rewards and can be used
alone.
"""

import compileall
import json
import os
import selectors
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from support.errors import ConfigError

Status = Literal["ok", "error", "timeout", "memory", "output"]
FOLDER = Path(__file__).resolve().parent
START = "import sys; sys.path.insert(0, sys.argv[2]); import launcher; launcher.main()"
SPARE_S = 35.0  # time for the launcher to reply, in addition to the program's time


class SandboxError(Exception):
    """The sandbox itself failed (no process could be started, the machine is overloaded), not the program."""


@dataclass(frozen=True)
class Limits:
    """Limits of a program.

    Args:
        wall_s: elapsed time from its first line to its end, in seconds.
        cpu_s: CPU time per process, in whole seconds.
        memory_mb: address space per process, and resident memory of all its processes together, in MB.
        processes: number of processes and threads at the same time, including itself.
        output_kb: standard output and error together, in KB.
        file_mb: size of one file, in MB.
        disk_mb: size of all its files, which are kept in memory, in MB.
    """

    wall_s: float = 5.0
    cpu_s: float = 5.0
    memory_mb: int = 512
    processes: int = 8
    output_kb: int = 64
    file_mb: int = 8
    disk_mb: int = 16

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ConfigError(f"sandbox limits: {name} is {value}; set it above 0.")


@dataclass(frozen=True)
class Result:
    """The result of a program: ok is exit code 0, error any other exit, the other statuses name the limit that it hit.

    Bytes that are not UTF-8 are replaced.
    """

    status: Status
    stdout: str
    stderr: str
    seconds: float


def run(
    program: str,
    stdin: str = "",
    limits: Limits | None = None,
    caller: str | None = None,
    allow_weaker: bool = False,
    without: frozenset[str] = frozenset(),
) -> Result:
    """Run an untrusted program; may be called from several threads at once.

    Args:
        program: source of the program.
        stdin: text on its standard input.
        limits: limits of the program.
        caller: source of a second program, which calls functions of the first by `call(name, *arguments)`; arguments
            and results are plain data, and failures raise CallFailed. Output and exit code are then the caller's; the
            program can neither read the caller's text nor write its output.
        allow_weaker: whether to continue, with one warning, if this machine lacks a protection; otherwise refuse.
        without: protections to disable, as on a machine that lacks them: namespaces, landlock, seccomp.

    Raises:
        ConfigError: a protection is missing.
        SandboxError: the sandbox itself failed.
    """
    limits = limits or Limits()
    _check_platform()
    _compiled()
    folder = tempfile.mkdtemp(prefix="sandbox_") if allow_weaker else "/tmp"
    spec = {
        "program": program,
        "stdin": stdin,
        "limits": asdict(limits),
        "called": caller is not None,
        "allow_weaker": allow_weaker,
    }
    spec |= {"without": sorted(without), "folder": folder, "root": os.geteuid() == 0, **_python_files()}
    if allow_weaker:
        os.chmod(folder, 0o777 if os.geteuid() == 0 else 0o700)
    try:
        stdout, stderr, report = _launch(spec, caller, limits)
    finally:
        if allow_weaker:
            _removed(folder)
    if not report:
        raise SandboxError(
            f"the sandbox failed without a report: {stderr[-500:].decode(errors='replace') or 'it was killed'}"
        )
    told = json.loads(report)
    if told["status"] == "refused":
        reasons = "; ".join(f"{name} ({reason})" for name, reason in told["missing"].items())
        raise ConfigError(
            "the sandbox for untrusted programs cannot give its full protection on this machine, missing: "
            f"{reasons}. Allow unprivileged user namespaces (docs/sandbox.md), or accept the remaining protections "
            "with allow_weaker: true."
        )
    if told["status"] == "broken":
        raise SandboxError(f"the sandbox failed: {told['message']}")
    if told["missing"]:
        _warn_once(told["missing"])
    too_much = len(stdout) + len(stderr) > limits.output_kb << 10
    status: Status = "output" if too_much else "error" if told["status"] == "stopped" else told["status"]
    cut = limits.output_kb << 10
    return Result(status, stdout[:cut].decode(errors="replace"), stderr[:cut].decode(errors="replace"), told["seconds"])


@cache
def _compiled() -> None:
    """Compile the launcher once; it writes no byte code itself and would otherwise be compiled at every start."""
    compileall.compile_dir(str(FOLDER), quiet=2)  # a read-only folder only costs time


def _launch(spec: dict[str, Any], caller: str | None, limits: Limits) -> tuple[bytes, bytes, bytes]:
    reads, writes = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", "-c", START, str(writes), str(FOLDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(writes,),
            cwd="/",
            # From this process's environment only the variable that an interpreter may need to find its library. Fixed
            # hashes make runs repeatable; fewer arenas reserve less address space, which the limits count.
            env={"LANG": "C.UTF-8", "HOME": "/tmp", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
            | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        os.close(reads)
        raise SandboxError(f"the sandbox's process cannot be started: {error}") from error
    finally:
        os.close(writes)
    assert process.stdin and process.stdout and process.stderr
    collected = {process.stdout.fileno(): b"", process.stderr.fileno(): b"", reads: b""}
    out, err = process.stdout.fileno(), process.stderr.fileno()
    try:
        _send(process.stdin, [spec] if caller is None else [spec, caller])
        deadline = time.monotonic() + limits.wall_s + SPARE_S
        with selectors.DefaultSelector() as selector:
            for source in collected:
                selector.register(source, selectors.EVENT_READ)
            while selector.get_map() and time.monotonic() < deadline:
                for key, _ in selector.select(1.0):
                    if more := os.read(key.fd, 65536):
                        collected[key.fd] += more
                    else:
                        selector.unregister(key.fd)
                if len(collected[out]) + len(collected[err]) > limits.output_kb << 10 and not process.stdin.closed:
                    process.stdin.close()  # the launcher then ends all processes; further output is read and dropped
                    for source in (out, err):
                        collected[source] = collected[source][: (limits.output_kb << 10) + 1]
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()
        os.close(reads)
    return collected[out], collected[err], collected[reads]


def _removed(folder: str) -> None:
    """Remove a program's files, including deeply nested folders (without recursion) and folders without permissions."""
    count, unused = 0, os.urandom(8).hex()
    while inner := list(os.scandir(folder)):
        for entry in inner:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for below in list(os.scandir(entry.path)):
                count += 1
                if below.is_dir(follow_symlinks=False):
                    os.chmod(below.path, 0o700)
                    os.rename(below.path, f"{folder}/{unused}{count}")
                else:
                    os.unlink(below.path)
            os.rmdir(entry.path)
    os.rmdir(folder)


def _send(pipe: Any, parts: list[Any]) -> None:
    try:
        for part in parts:
            text = json.dumps(part).encode()
            message = memoryview(len(text).to_bytes(8, "big") + text)
            while message:
                message = message[pipe.write(message) :]
    except BrokenPipeError:
        pass  # the launcher ended before it had read everything; its report has the reason


def _python_files() -> dict[str, list[str]]:
    """Paths that an interpreter needs to read, and folders inside them that are hidden from programs."""
    wanted = [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/etc/ld.so.cache",
        "/nix/store",
        sysconfig.get_paths()["stdlib"],
    ]
    wanted.append(str(sysconfig.get_config_var("LIBDIR") or ""))
    real = {os.path.realpath(path): None for path in wanted if os.path.exists(path)}
    paths = [path for path in {**real, **{p: None for p in wanted if os.path.exists(p)}} if path != "/"]
    hidden = [f"{path}/{name}" for path in real for name in ("site-packages", "dist-packages", "python3/dist-packages")]
    return {"readable": paths, "hidden": [path for path in hidden if os.path.isdir(path)]}


def _check_platform() -> None:
    if not sys.platform.startswith("linux"):
        raise ConfigError(
            f"the sandbox for untrusted programs needs Linux, this is {sys.platform}; run it in a container or virtual "
            "machine."
        )
    if not sys.executable:
        raise ConfigError(
            "the sandbox for untrusted programs needs sys.executable, which this embedded interpreter does not set; "
            "run it with the command python."
        )


_warned: set[str] = set()


def _warn_once(missing: dict[str, str]) -> None:
    key = ", ".join(sorted(missing))
    if key not in _warned:
        _warned.add(key)
        reasons = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
        warnings.warn(
            "untrusted programs run with less protection than usual on this machine, missing: "
            f"{reasons}; see docs/sandbox.md",
            stacklevel=3,
        )
