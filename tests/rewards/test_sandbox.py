"""A hundred hostile programs, as three kinds of user; refusals and messages of the sandbox; calls into programs."""

import errno
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from functools import cache
from pathlib import Path

import pytest
from hostile import PROGRAMS, SECRET, left_behind

from rewards import sandbox
from rewards.sandbox import Limits, run
from support.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
WALL_S = 1.0
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}


@cache
def full_protection() -> bool:
    try:
        return run("").status == "ok"
    except ConfigError:
        return False  # a container that allows no name spaces: only the weaker mode can be tried there


@cache
def unprivileged() -> tuple[str, dict]:
    """An interpreter for a user without privileges, and how to become one."""
    if os.geteuid() != 0:
        return sys.executable, {}
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            subprocess.run(
                [python, "-c", "import ctypes, sys; assert sys.version_info >= (3, 11)"],
                check=True,
                capture_output=True,
                **NOBODY,
            )
            return python, NOBODY
        except (OSError, subprocess.CalledProcessError):
            pass
    return sys.executable, {}  # root's own interpreter is the only one


def fight(mode: str, *only: str) -> dict:
    """All programs, or some: as this user, as one without privileges, or without what a machine may lack."""
    python, user = (sys.executable, {}) if mode == "own user" else unprivileged()
    without = {"no name spaces": ["namespaces"], "nothing": ["namespaces", "landlock", "seccomp"]}.get(mode, [])
    folder = Path(tempfile.mkdtemp(prefix="fight_"))
    try:
        for source in ("rewards/sandbox", "support", "tests/rewards/hostile.py", "pyproject.toml"):
            (folder / source).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, folder / source)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        command = [
            python,
            "-W",
            "ignore",
            str(folder / "tests/rewards/hostile.py"),
            str(WALL_S),
            *(["--only"] if only else []),
            *only,
            *without,
        ]
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o777)
        own = os.environ | {"TMPDIR": str(folder / "tmp")}  # what another test leaves for a moment does not count
        done = subprocess.run(command, cwd="/", env=own, capture_output=True, text=True, timeout=300, **user)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    finally:
        shutil.rmtree(folder)


MODES = ["own user", "without privileges", "no name spaces"] if full_protection() else ["no name spaces"]
if os.geteuid() != 0 and full_protection():
    MODES.remove("without privileges")  # the same


@pytest.fixture(scope="session")
def fights(tmp_path_factory):
    """The result of each mode's fight: one for all tests, and for all workers if pytest has several."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    @cache
    def result(mode: str) -> dict:
        path = folder / f"fight {mode}.json"
        with open(path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if not (text := file.read()):
                file.write(text := json.dumps(fight(mode)))
        return json.loads(text)

    return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_does_no_harm_and_ends(name, mode, fights):
    status, stdout, stderr, seconds, _ = fights(mode)["results"][name]
    ends = PROGRAMS[name][1] | (
        {"error"} if mode == "no name spaces" else set()
    )  # the user's other processes count against its limit there
    assert status in ends, (status, stdout, stderr)
    assert "HARM" not in stdout, stdout
    assert SECRET not in stdout + stderr
    assert seconds < (WALL_S if "timeout" in ends else 10 * WALL_S) + 1


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_harmed_or_left_behind(mode, fights):
    found = fights(mode)
    assert len(found["results"]) == len(PROGRAMS) >= 100
    assert found["harm"] == [] and found["left"] == [] and found["files"] == []


def test_the_arena_sees_harm_where_there_is_no_protection():
    """Otherwise the tests above would pass for want of eyes."""
    found = fight(
        "nothing",
        "reads a secret",
        "writes to the trainer's file",
        "connects to a local port",
        "shell",
        "slows others down",
    )
    assert SECRET in found["results"]["reads a secret"][1]
    assert {"a file was changed", "something came by the network", "the victim was slowed down"} <= set(found["harm"])


def test_an_ordinary_program_works():
    program = (
        "import json, math, re, collections\nname = input()\nopen('f', 'w').write(name)\n"
        "print(open('f').read(), math.pi, len(json.dumps({})))"
    )
    done = run(program, "Ada\n", allow_weaker=not full_protection())
    assert (done.status, done.stdout, done.stderr) == ("ok", "Ada 3.141592653589793 2\n", "")
    assert run("exit(2)", allow_weaker=not full_protection()).status == "error"


def test_a_program_ends_as_python_ends():
    """Threads are waited for, exit functions are called, a replaced stdout does not lose the real one's text."""
    program = (
        "import atexit, io, os, sys, threading, time\nprint('first')\n"
        "atexit.register(lambda: os.write(1, b'last\\n'))\n"
    )
    program += (
        "threading.Thread(target=lambda: (time.sleep(0.1), sys.__stdout__.write('thread\\n'))).start()\n"
        "sys.stdout = io.StringIO()\nprint('nothing')"
    )
    done = run(program, allow_weaker=not full_protection())
    assert (done.status, sorted(done.stdout.split())) == ("ok", ["first", "last", "thread"]), done.stderr
    assert run("import sys\nsys.stdout.close()", allow_weaker=not full_protection()).status == "ok"
    assert run("import sys\nsys.exit('sorry')", allow_weaker=not full_protection()).stderr == "sorry\n"


def test_an_error_shows_the_programs_own_lines_only():
    done = run("def f():\n    return 1 / 0\nf()", allow_weaker=not full_protection())
    assert done.stderr.splitlines()[1:] == [
        '  File "program.py", line 3, in <module>',
        '  File "program.py", line 2, in f',
        "ZeroDivisionError: division by zero",
    ]


def test_equal_runs_give_equal_output():
    program = "print({str(i) for i in range(50)}, hash('x'))"
    assert (
        run(program, allow_weaker=not full_protection()).stdout
        == run(program, allow_weaker=not full_protection()).stdout
    )


def test_a_missing_protection_is_refused_or_told_once(monkeypatch):
    monkeypatch.setattr(sandbox, "_warned", set())
    for missing in ("namespaces", "seccomp"):
        with pytest.raises(ConfigError, match=f"missing: .*{missing} .*allow_weaker: true"):
            run("print('ran')", without=frozenset({missing}))
    with pytest.warns(UserWarning, match="less protection than usual .* seccomp"):
        assert run("print('ran')", without=frozenset({"seccomp"}), allow_weaker=True).stdout == "ran\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("print('ran')", without=frozenset({"seccomp"}), allow_weaker=True).stdout == "ran\n"


def test_wrong_limits_and_another_system_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="memory_mb is 0"):
        Limits(memory_mb=0)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="needs Linux, this is darwin"):
        run("")


def test_no_process_to_be_had_is_the_sandboxs_failure(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(sandbox.SandboxError, match="cannot be started"):
        run("")


def test_an_interpreter_that_does_not_start_is_quoted(monkeypatch):
    monkeypatch.setattr(sandbox, "START", "raise OSError('no library')")
    with pytest.raises(sandbox.SandboxError, match="(?s)without a report: .*no library"):
        run("")


def test_nothing_outlives_a_trainer_that_is_killed(tmp_path):
    mark = f"mark-{uuid.uuid4().hex}"
    script = tmp_path / "trainer.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'rewards')!r}]\nimport sandbox, threading\n"
        f"sandbox.START += ' # {mark}'\n"
        "program = 'import os, time\\nos.fork()\\nprint(1, flush=True)\\ntime.sleep(60)'\n"
        "limits = sandbox.Limits(wall_s=60)\n"
        "for _ in range(2): threading.Thread(target=sandbox.run, args=(program, '', limits), "
        f"kwargs=dict(allow_weaker={not full_protection()})).start()\n"
    )
    trainer = subprocess.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 20
    while (
        len(left_behind(mark)) < 8 and time.monotonic() < deadline
    ):  # of each run a launcher, the first process inside and the program twice
        time.sleep(0.05)
    assert len(left_behind(mark)) == 8
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    while left_behind(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_behind(mark) == []


# ---- a caller beside the program -------------------------------------------------------------------------------------


def called(program: str, caller: str, **limits):
    return run(program, caller=caller, limits=Limits(**limits), allow_weaker=not full_protection())


def test_plain_data_go_both_ways():
    values = [
        None,
        True,
        -1,
        2**70,
        0.1,
        float("inf"),
        "é\n",
        b"\x00",
        1j,
        (1, (2,)),
        {1, 2},
        frozenset("a"),
        {(1, 2): [3, {}], "k": None},
        [[]],
    ]
    caller = (
        f"from math import inf\nfor v in {values!r}:\n    w = call('same', v)\n"
        "    assert w == v and type(w) is type(v), (v, w)\nprint(call('add', 1, b=2))"
    )
    done = called("def same(x): return x\ndef add(a, b): return a + b", caller)
    assert (done.status, done.stdout) == ("ok", "3\n"), done.stderr


@pytest.mark.parametrize(
    "program",
    [
        "class Yes:\n    def __eq__(self, other): return True\ndef f(x): return Yes()",
        "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
        "def f(x): return Yes(0)",
        "def f(x): raise SystemExit(0)",
        "import os\nos._exit(0)\ndef f(x): pass",
        "import sys\nsys.exit(0)",
        "import builtins, os\nbuiltins.print('passed')\nos.write(1, b'passed')\nfor n in range(3, 100):\n"
        "    try: os.write(n, b'{\"value\": 0}\\n')\n    except OSError: pass\ndef f(x): return 1",
        "def f(x): return lambda: 0",
        "def f(x):\n    a = []\n    a.append(a)\n    return a",
        "import os\ndef f(x): os.kill(os.getpid(), 9)",
        "import os\ndef f(x):\n    for pid in range(1, 10):\n        if pid != os.getpid():\n"
        "            try: os.kill(pid, 9)\n            except OSError: pass\n    return 1",
        "g = 1",
        "def f(x",
    ],
)
def test_a_program_cannot_pass_itself(program):
    done = called(
        program,
        "try:\n    right = call('f', 3) == 42\nexcept CallFailed: right = False\n"
        "print('passed' if right else 'failed')",
        wall_s=5,
    )
    assert done.stdout in ("failed\n", "")


def test_a_program_cannot_read_its_caller():
    spy = (
        "import gc, os, sys\ndef f(x):\n"
        "    seen = [repr(o) for o in gc.get_objects() if type(o) in (str, list, dict) and len(o) < 100]\n"
        "    frame, names = sys._getframe(), []\n"
    )
    spy += (
        "    while frame: names.append(repr(frame.f_locals)); frame = frame.f_back\n"
        "    return any('forty' + '-two' in s for s in seen + names)"
    )
    done = called(spy, "hidden = 'forty-two'\nprint(call('f', 1))")
    assert (done.status, done.stdout) == ("ok", "False\n"), done.stderr


def test_what_the_program_prints_is_not_the_callers_output():
    done = called("print('noise')\ndef f():\n    print('more noise')\n    return 1", "print(call('f'))")
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_program_that_hangs_leaves_what_the_caller_said_before():
    done = called(
        "def f(x):\n    while x: pass\n    return x", "print(call('f', 0), flush=True)\nprint(call('f', 1))", wall_s=1
    )
    assert (done.status, done.stdout) == ("timeout", "0\n")


# ---- the filter of system calls --------------------------------------------------------------------------------------


def verdict(code: bytes, number: int, audit: int, argument: int = 0) -> int:
    """The return value of the kernel's filter machine for a call: an interpreter of the five instructions in use."""
    data = struct.pack("IIQQ", number, audit, 0, argument)
    place = accumulator = 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("HBBI", code, 8 * place)
        place += 1
        if operation == 0x06:
            return value
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("I", data, value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            place += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "audit", "numbers"),
    [  # read, socket, execve, ptrace, clone, setsid, kill, prlimit64
        ("x86_64", 0xC000003E, (0, 41, 59, 101, 56, 112, 62, 302)),
        ("aarch64", 0xC00000B7, (63, 198, 221, 117, 220, 157, 129, 261)),
    ],
)
def test_the_filter_of_each_machine(machine, audit, numbers, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "rewards/sandbox"))
    spec = importlib.util.spec_from_file_location("seccomp_under_test", ROOT / "rewards/sandbox/seccomp.py")
    seccomp = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seccomp)
    allowed, refused, unknown, killed = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
    read, socket, execve, ptrace, clone, setsid, kill, prlimit = numbers
    code = seccomp.program(machine, leaving=False, signals=False)
    assert [verdict(code, n, audit) for n in (read, setsid, kill, clone)] == [allowed] * 4
    assert [verdict(code, n, audit) for n in (socket, execve, ptrace)] == [refused] * 3
    assert [verdict(code, n, audit) for n in (425, 435, 460)] == [unknown] * 3 and verdict(code, 439, audit) == allowed
    assert verdict(code, clone, audit, 0x10000000 | 17) == refused and verdict(code, clone, audit, 17) == allowed
    assert verdict(code, prlimit, audit, 0) == allowed and verdict(code, prlimit, audit, 5) == refused
    assert verdict(code, read, 0x40000003) == killed  # i386
    strict = seccomp.program(machine, leaving=True, signals=True)
    assert [verdict(strict, n, audit) for n in (setsid, kill)] == [refused] * 2 and verdict(
        strict, read, audit
    ) == allowed
