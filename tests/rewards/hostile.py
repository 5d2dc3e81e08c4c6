"""Programs that try to break out of the sandbox, and an arena in which every success would show.

Run as a script, it prints the result of each program as JSON. A program prints HARM where it sees that it got through;
the arena is searched for the effects that it cannot see. None could do lasting damage to the machine even without a
sandbox: bombs have an end, and signals go to processes of the arena.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECRET = "the-secret-of-the-arena"
#: fails to do something: everything that is denied raises an OSError of some kind
TRY = (
    "def attempt(action):\n    try:\n        action()\n        print('HARM')\n    except (OSError, ImportError): pass\n"
)
SYSCALL = (
    "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\ndef harmful(result):\n"
    "    print('HARM' if result >= 0 else 'denied')\n"
)

#: name -> (program, the ways in which it may end)
PROGRAMS: dict[str, tuple[str, set[str]]] = {
    # ---- time
    "sleep": ("import time; time.sleep(60)", {"timeout"}),
    "busy loop": ("while True: pass", {"timeout"}),
    "busy loop in C": ("sum(range(10**12))", {"timeout"}),
    "ignores SIGTERM and all else": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
        {"timeout"},
    ),
    "catches everything": (
        "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass",
        {"timeout"},
    ),
    "blocked signals": (
        "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: time.sleep(1)",
        {"timeout"},
    ),
    "reads a pipe for ever": ("import os\nr, w = os.pipe()\nos.read(r, 1)", {"timeout"}),
    "waits for input": (
        "import sys\nsys.stdin.read(); print(len(sys.stdin.read())); import time; time.sleep(60)",
        {"timeout"},
    ),
    "catastrophic regular expression": ("import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", {"timeout"}),
    "huge power": ("print(len(bin(7 ** (10 ** 9))))", {"timeout", "memory"}),
    "computes in many processes": ("import os\nfor _ in range(4): os.fork()\nwhile True: pass", {"timeout", "error"}),
    "raises its own limits": (
        "import resource\ntry: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); print('HARM')\n"
        "except (ValueError, OSError): pass",
        {"ok"},
    ),
    # ---- memory
    "memory bomb": (
        "found = []\nfor _ in range(300): found.append(bytearray(10 << 20))\nprint('HARM')",
        {"memory", "timeout"},
    ),
    "memory in one piece": ("bytearray(3 << 30); print('HARM')", {"memory"}),
    "memory over processes": (
        "import os, time\nfor _ in range(2): os.fork()\nfound = []\n"
        "for _ in range(8): found.append(b'x' * (10 << 20))\ntime.sleep(60)",
        {"memory", "timeout"},
    ),
    "mmap": (
        "import mmap\nfound = []\nfor _ in range(300): found.append(mmap.mmap(-1, 10 << 20))\nprint('HARM')",
        {"error", "memory"},
    ),
    "memory files": (
        "import os\nfor _ in range(50):\n    f = os.memfd_create('x'); os.truncate(f, 1 << 20)\nprint('HARM')",
        {"error"},
    ),
    "shared memory segments": (SYSCALL + "harmful(libc.shmget(0, 1 << 20, 0o1600))", {"ok"}),
    "memory of a process that has ended": (
        "import mmap, os, time\nif os.fork():\n    os.wait()\nelse:\n    pages = mmap.mmap(-1, 90 << 20)\n"
        "    if not os.fork():\n        pages.write(b'x' * (90 << 20)); os._exit(0)\n    os.wait(); print('HARM')",
        {"ok", "error"},
    ),
    "a list that contains itself": (
        "a = []\nfor _ in range(100): a = [a]\nwhile True: a = [a, a, [0] * 100000]",
        {"memory", "timeout"},
    ),
    # ---- processes
    "fork bomb": (
        "import os, time\nfor _ in range(12):\n    try: os.fork()\n    except OSError: time.sleep(0.01)\n"
        "time.sleep(60)",
        {"timeout", "memory"},
    ),
    "forks without end": (
        "import os\nfor _ in range(3000):\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass",
        {"ok", "timeout"},
    ),
    "daemon by double fork": (
        "import os, time\nif os.fork() == 0:\n    try: os.setsid()\n    except OSError: pass\n"
        "    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)",
        {"ok"},
    ),
    "new session and group": (
        "import os, time\nif os.fork() == 0:\n    for f in (os.setsid, os.setpgrp):\n        try: f()\n"
        "        except OSError: pass\n    time.sleep(60)",
        {"ok"},
    ),
    "zombies": ("import os, time\nfor _ in range(4):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(0.1)", {"ok"}),
    "threads": (
        "import threading, time\n"
        "for _ in range(1000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('HARM')",
        {"error"},
    ),
    "thread that does not end": (
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
        {"timeout"},
    ),
    "shell": ("import os\nprint('HARM' if os.system(f'echo x > {TARGET}') == 0 else 'denied')", {"ok", "error"}),
    "subprocess": (
        TRY + "import subprocess\nattempt(lambda: subprocess.run(['/bin/sh', '-c', f'echo x > {TARGET}'], check=True))",
        {"ok", "error"},
    ),
    "exec of another Python": (
        TRY + "import os, sys\nattempt(lambda: os.execv(sys.executable, ['python', '-c', 'print(\"HARM\")']))",
        {"ok"},
    ),
    "exec of its own file": (
        TRY + "import os\nopen('x.sh', 'w').write('#!/bin/sh\\necho HARM'); os.chmod('x.sh', 0o755)\n"
        "attempt(lambda: os.execv('./x.sh', ['x']))",
        {"ok"},
    ),
    "multiprocessing spawn": (
        "import multiprocessing as m\n"
        "try: p = m.get_context('spawn').Process(target=print, args=('HARM',)); p.start(); p.join()\n"
        "except OSError: pass",
        {"ok", "error"},
    ),
    # ---- signals and other processes' memory
    "kills the trainer": (
        TRY + "import os\nif PARENT > 100 or os.getpid() > 100: attempt(lambda: os.kill(PARENT, 0))",
        {"ok"},
    ),
    "kills another process": (TRY + "import os\nattempt(lambda: os.kill(VICTIM, 9))", {"ok"}),
    "kills its group": ("import os\nos.killpg(0, 9)", {"error"}),
    "kills process 1 and its parent": (
        "import os\nfor pid in {1 if os.getpid() < 100 else os.getppid(), os.getppid()}:\n"
        "    for n in (2, 9, 15):\n        try: os.kill(pid, n)\n"
        "        except OSError: pass\nprint('still here')",
        {"ok", "error"},
    ),
    "kills everybody": ("import os\nif os.getpid() < 100: os.kill(-1, 9)", {"ok", "error"}),
    "queues a signal": (SYSCALL + "harmful(libc.sigqueue(VICTIM, 9, 0))", {"ok"}),
    "signals by a file descriptor": (
        TRY + "import os, signal\nattempt(lambda: signal.pidfd_send_signal(os.pidfd_open(VICTIM), 9))",
        {"ok"},
    ),
    "ptrace": (
        SYSCALL + "harmful(libc.ptrace(16, VICTIM, 0, 0)); import os; harmful(libc.ptrace(16, os.getppid(), 0, 0))",
        {"ok"},
    ),
    "memory of another process": (
        SYSCALL + "import os; harmful(libc.syscall(310, os.getppid(), 0, 0, 0, 0, 0))",
        {"ok"},
    ),
    "slows others down": (TRY + "import os\nattempt(lambda: os.setpriority(os.PRIO_PROCESS, VICTIM, 19))", {"ok"}),
    "limits others": (
        "import resource\ntry: resource.prlimit(VICTIM, resource.RLIMIT_CPU, (1, 1)); print('HARM')\n"
        "except (OSError, ValueError): pass",
        {"ok"},
    ),
    # ---- files
    "reads /etc/passwd": (TRY + "attempt(lambda: open('/etc/passwd').read())", {"ok"}),
    "reads the repository": (TRY + "attempt(lambda: open(REPOSITORY + '/pyproject.toml').read())", {"ok"}),
    "lists home folders": (
        "import os\nfor path in ('/root', '/home'):\n    try:\n        for name in os.listdir(path):\n"
        "            if not name.startswith('.pyenv'): print('HARM', name)\n    except OSError: pass",
        {"ok"},
    ),
    "reads a secret": (TRY + "attempt(lambda: print(open(SECRET_FILE).read()))", {"ok"}),
    "writes to the trainer's file": (TRY + "attempt(lambda: open(TARGET, 'w').write('x'))", {"ok"}),
    "removes the trainer's file": (TRY + "import os\nattempt(lambda: os.remove(TARGET))", {"ok"}),
    "symbolic link out of the folder": (
        TRY + "import os\nos.symlink(TARGET, 'link'); os.symlink('/', 'root')\n"
        "attempt(lambda: open('link', 'w'))\nattempt(lambda: open('root/etc/passwd').read())",
        {"ok"},
    ),
    "hard link out of the folder": (TRY + "import os\nattempt(lambda: os.link(TARGET, 'hard'))", {"ok"}),
    "dots": (TRY + "attempt(lambda: open('../' * 20 + TARGET, 'w'))", {"ok"}),
    "writes to the library": (
        TRY + "import os\nattempt(lambda: open(os.path.dirname(os.__file__) + '/hostile.py', 'w'))\n"
        "attempt(lambda: open('/usr/lib/hostile', 'w'))",
        {"ok"},
    ),
    "writes to the root": (
        TRY + "import os\nattempt(lambda: open('/hostile', 'w'))\nattempt(lambda: os.mkdir('/etc/hostile'))",
        {"ok"},
    ),
    "reads /proc": (
        TRY + "import os\nfor path in ('self/environ', '1/environ', f'{PARENT}/environ', f'{PARENT}/maps', "
        "'self/root/etc/passwd', f'{PARENT}/root/etc/passwd', 'self/mem'):\n"
        "    attempt(lambda: open('/proc/' + path, 'rb').read())",
        {"ok"},
    ),
    "file descriptors of others": (
        TRY + "import os\nattempt(lambda: open(f'/proc/{PARENT}/fd/0'))\n"
        "attempt(lambda: open(f'/proc/{os.getppid()}/fd/0'))",
        {"ok"},
    ),
    "settings of the kernel": (
        TRY + "attempt(lambda: open('/proc/sys/kernel/core_pattern', 'r+'))\n"
        "attempt(lambda: open('/proc/sysrq-trigger', 'w'))",
        {"ok"},
    ),
    "devices": (
        TRY + "attempt(lambda: open('/dev/mem', 'rb'))\nattempt(lambda: open('/dev/vda', 'rb'))\n"
        "attempt(lambda: open('/dev/shm/hostile', 'w'))\nattempt(lambda: open('/dev/tty', 'w'))",
        {"ok"},
    ),
    "makes a device": (TRY + "import os\nattempt(lambda: os.mknod('disk', 0o60666, os.makedev(8, 0)))", {"ok"}),
    "huge file": (
        "with open('x', 'wb') as f:\n    for _ in range(200): f.write(bytes(1 << 20))\nprint('HARM')",
        {"error"},
    ),
    "many files": (
        "import os\nfor i in range(20000): open(f'f{i}', 'w').write('x')\nos.listdir('.')",
        {"ok", "error", "timeout"},
    ),
    "many large files": (
        "for i in range(64):\n    with open(f'f{i}', 'wb') as f: f.write(bytes(1 << 20))\n"
        "print('HARM' if FULL else '')",
        {"ok", "error"},
    ),
    "sparse file": ("open('x', 'wb').truncate(1 << 40); print('HARM')", {"error"}),
    "deep folders": ("import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')", {"ok", "error"}),
    "locked folders": (
        "import os\nos.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0)",
        {"ok"},
    ),
    "set-user-id file": (
        TRY + "import os\nopen('x', 'w').write('#!/bin/sh\\n'); os.chmod('x', 0o4755)\n"
        "attempt(lambda: os.execv('/tmp/x', ['x']))",
        {"ok"},
    ),
    # ---- privileges and name spaces
    "becomes root": (
        TRY + "import os\nattempt(lambda: os.setuid(0) if os.getuid() else None) if os.getuid() else print('HARM')",
        {"ok"},
    ),
    "capabilities": (
        SYSCALL + "import struct\nfound = ctypes.create_string_buffer(24)\n"
        "libc.capget(struct.pack('II', 0x20080522, 0), found)\nprint('HARM' if any(found.raw) else '')",
        {"ok"},
    ),
    "new name space": (SYSCALL + "harmful(libc.unshare(0x10000000)); harmful(libc.unshare(0x20000))", {"ok"}),
    "clone into a name space": (SYSCALL + "harmful(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0))", {"ok"}),
    "mount": (
        SYSCALL + "harmful(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)); harmful(libc.umount2(b'/tmp', 2))",
        {"ok"},
    ),
    "chroot": (TRY + "import os\nos.mkdir('d')\nattempt(lambda: os.chroot('d'))", {"ok"}),
    "32-bit calls": (
        "import platform\nraise SystemExit(1) if platform.machine() != 'x86_64' else None\n"
        + SYSCALL
        + "harmful(libc.syscall(0x40000000 + 41, 2, 1, 0))",
        {"ok", "error"},
    ),
    "io_uring": (SYSCALL + "harmful(libc.syscall(425, 8, ctypes.create_string_buffer(200)))", {"ok"}),
    "kernel interfaces": (
        SYSCALL + "harmful(libc.syscall(321, 0, ctypes.create_string_buffer(200), 72)); harmful(libc.syscall(298, "
        "ctypes.create_string_buffer(200), 0, -1, -1, 0))",
        {"ok"},
    ),
    "undoes the filter": (SYSCALL + "harmful(libc.prctl(22, 0, 0, 0, 0)); harmful(libc.prctl(38, 0, 0, 0, 0))", {"ok"}),
    "reboot": (SYSCALL + "harmful(libc.sethostname(b'x', 1))", {"ok"}),
    # ---- network
    "connects to a local port": (
        TRY + "import socket\nattempt(lambda: socket.create_connection(('127.0.0.1', PORT), 1))",
        {"ok"},
    ),
    "connects by IPv6": (TRY + "import socket\nattempt(lambda: socket.create_connection(('::1', PORT), 1))", {"ok"}),
    "connects to the trainer's socket file": (
        TRY + "import socket\ndef f():\n    s = socket.socket(socket.AF_UNIX); s.connect(SOCKET)\nattempt(f)",
        {"ok"},
    ),
    "connects to an abstract socket": (
        TRY + "import socket\ndef f():\n    s = socket.socket(socket.AF_UNIX); s.connect('\\0' + SOCKET)\nattempt(f)",
        {"ok"},
    ),
    "asks a name server": (TRY + "import socket\nattempt(lambda: socket.getaddrinfo('example.com', 80))", {"ok"}),
    "sends a datagram": (
        TRY + "import socket\n"
        "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)))",
        {"ok"},
    ),
    "listens": (TRY + "import socket\nattempt(lambda: socket.create_server(('127.0.0.1', 0)))", {"ok"}),
    "raw packets": (TRY + "import socket\nattempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))", {"ok"}),
    "fetches a page": (
        TRY + "import urllib.request\nattempt(lambda: urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1))",
        {"ok"},
    ),
    # ---- output and end
    "output without end": ("while True: print('x' * 1000)", {"output"}),
    "errors without end": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {"output"}),
    "output from a child": ("import os\nos.fork()\nwhile True: os.write(1, b'x' * 1000)", {"output"}),
    "bytes that are no text": ("import os; os.write(1, bytes(range(256)))", {"ok"}),
    "os._exit": ("import os; print('x'); os._exit(0)", {"ok"}),
    "exit code": ("raise SystemExit(3)", {"error"}),
    "closes its files": ("import os\nos.closerange(0, 1000)", {"ok", "error"}),
    "writes to any file descriptor": (
        "import os\nfor n in range(3, 1000):\n"
        "    try: os.write(n, b'{\"code\": 0, \"ready\": true}\\n'); print('HARM')\n    except OSError: pass",
        {"ok"},
    ),
    "recursion": ("def f(): f()\nf()", {"error"}),
    "recursion in C": ("import sys\nsys.setrecursionlimit(10**8)\ndef f(): f()\nf()", {"error", "memory", "timeout"}),
    "stack overflow": (
        "import sys, threading\nsys.setrecursionlimit(10**8)\nclass A:\n"
        "    def __getattr__(self, n): return getattr(self, n)\nA().x",
        {"error", "memory"},
    ),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", {"error"}),
    "abort": ("import os; os.abort()", {"error"}),
    "corrupts the interpreter": (
        "import ctypes\nctypes.memset(id(0), 255, 4096)\nprint(0)",
        {"ok", "error", "timeout", "memory"},
    ),
    "syntax error": ("def (", {"error"}),
    "null bytes": ("x = 1\0", {"error"}),
    "reads the environment": ("import os\nprint('HARM' if 'ARENA' in os.environ else '', dict(os.environ))", {"ok"}),
    "looks into its own frames": (
        "import sys, gc\nframe = sys._getframe()\n"
        "while frame: print(list(frame.f_locals)); frame = frame.f_back\n"
        "print(any('ARENA' in str(o) for o in gc.get_objects() if type(o) is dict and len(o) < 50))",
        {"ok", "output"},
    ),
    "imports what is installed": ("try:\n    import torch\n    print('HARM')\nexcept ImportError: pass", {"ok"}),
    "core dump": (
        "import os, resource\ntry: resource.setrlimit(resource.RLIMIT_CORE, (-1, -1)); print('HARM')\n"
        "except (ValueError, OSError): pass\nos.abort()",
        {"error"},
    ),
    "wait for others": ("import os\ntry: os.wait(); print('HARM')\nexcept ChildProcessError: pass", {"ok"}),
    "terminal": (TRY + "import fcntl, termios\nattempt(lambda: fcntl.ioctl(0, termios.TIOCSTI, b'x'))", {"ok"}),
    "replaces exit": (
        "import atexit, os, time\natexit.register(time.sleep, 60)\nimport sys\n"
        "sys.excepthook = lambda *a: time.sleep(60)\n1 / 0",
        {"timeout"},
    ),
    "slow finaliser": ("import time\nclass A:\n    def __del__(self): time.sleep(60)\na = A()\ndel a", {"timeout"}),
}


class Arena:
    """Targets that may be harmed: a process, files, listeners, a secret in the environment."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="arena_"))
        self.folder.chmod(0o777)
        (self.folder / "secret").write_text(SECRET)
        self.target = self.folder / "target"
        self.target.write_text("untouched")
        for name in ("secret", "target"):
            (self.folder / name).chmod(0o666)
        os.environ["ARENA"] = SECRET
        self.victim = subprocess.Popen(["sleep", "600"])
        self.nice = os.getpriority(os.PRIO_PROCESS, self.victim.pid)
        self.came: list[str] = []
        self.sockets = [
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(socket.AF_UNIX),
            socket.socket(socket.AF_UNIX),
        ]
        self.port = self.sockets[0].getsockname()[1]
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(("127.0.0.1", self.port))
        self.path = str(self.folder / "socket")
        self.sockets[1].bind(self.path)
        os.chmod(self.path, 0o777)
        self.sockets[2].bind("\0" + self.path)
        for listener in self.sockets:
            listener.listen()
            listener.settimeout(0)
        self.datagrams.settimeout(0)

    def names(self, full: bool) -> str:
        given = {
            "VICTIM": self.victim.pid,
            "PARENT": os.getpid(),
            "TARGET": str(self.target),
            "SECRET_FILE": str(self.folder / "secret"),
        }
        given |= {"PORT": self.port, "SOCKET": self.path, "REPOSITORY": str(ROOT), "FULL": full}
        return "".join(f"{name} = {value!r}; " for name, value in given.items()) + "\n"

    def harm(self) -> list[str]:
        """The signs of harm that the arena shows."""
        found = []
        if self.victim.poll() is not None:
            found.append("the victim is dead")
        elif os.getpriority(os.PRIO_PROCESS, self.victim.pid) != self.nice:
            found.append("the victim was slowed down")
        if not self.target.is_file() or self.target.read_text() != "untouched":
            found.append("a file was changed")
        if sorted(p.name for p in self.folder.iterdir()) != ["secret", "socket", "target"]:
            found.append("files were made")
        for listener in (*self.sockets, self.datagrams):
            try:
                listener.recv(1) if listener is self.datagrams else listener.accept()
                found.append("something came by the network")
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for listener in (*self.sockets, self.datagrams):
            listener.close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
        del os.environ["ARENA"]


def left_behind(mark: str) -> list[str]:
    """Processes that were started with a mark in their command line, by their names."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if mark in Path(f"/proc/{entry}/cmdline").read_text(errors="replace"):
                    found.append(Path(f"/proc/{entry}/status").read_text().split("\n", 3)[2])
            except OSError:
                pass
    return found


def fight(wall_s: float, without: list[str], only: list[str] | None = None, workers: int = 6) -> dict:
    """Run all programs, or some.

    Returns:
        {"results": {name: [status, stdout, stderr, seconds, seconds outside]}, "harm": signs of harm,
        "left": processes that still run, "files": new temporary files, "threads": number of threads}.
    """
    import sandbox

    mark = f"mark-{uuid.uuid4().hex}"
    sandbox.START = sandbox.START.split(" #")[0] + f" # {mark}"
    small = {"cpu_s": 5, "memory_mb": 128, "processes": 6, "output_kb": 32, "file_mb": 4, "disk_mb": 8}
    arena, before = Arena(), set(os.listdir(tempfile.gettempdir()))
    names = arena.names(full=not without)

    def one(entry: tuple[str, set[str]]) -> list:
        program, ends = entry
        limits = sandbox.Limits(wall_s=wall_s if "timeout" in ends else 10 * wall_s, **small)
        started = time.monotonic()
        result = sandbox.run(
            names + program, "one line\n", limits, allow_weaker=bool(without), without=frozenset(without)
        )
        return [result.status, result.stdout, result.stderr, result.seconds, time.monotonic() - started]

    try:
        with ThreadPoolExecutor(workers) as pool:
            chosen = {name: entry for name, entry in PROGRAMS.items() if only is None or name in only}
            results = dict(zip(chosen, pool.map(one, chosen.values()), strict=True))
        new = [name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("sandbox_")]
        return {
            "results": results,
            "harm": arena.harm(),
            "left": left_behind(mark),
            "files": new,
            "threads": threading.active_count(),
        }
    finally:
        sandbox.START = sandbox.START.split(" #")[0]
        arena.close()


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "rewards")]
    left_out = [name for name in ("namespaces", "landlock", "seccomp") if name in sys.argv]
    print(json.dumps(fight(float(sys.argv[1]), left_out, sys.argv[3:] if sys.argv[2:3] == ["--only"] else None)))
