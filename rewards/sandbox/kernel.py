"""The sandbox's calls of the Linux kernel, by ctypes.

The launcher imports this module, so it uses the standard library only. Sources: the manual pages namespaces(7),
pivot_root(2), mount_setattr(2), capabilities(7), prctl(2), landlock(7).
"""

import ctypes
import os
import platform
import signal
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH, AT_RECURSIVE = 2, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = (
    1,
    4,
    24,
    36,
    38,
    47,
)
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = (
    442,
    444,
    445,
    446,
)  # the same everywhere
# Landlock's rights to files by the version that brought them, landlock(7)
READ = 1 << 2 | 1 << 3  # read a file, list a folder
WRITE = (
    1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12
)  # write, remove and make files, folders, links, fifos
ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}


def checked(result: int, what: str) -> int:
    """The result of a call. Raises OSError with the kernel's reason if it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: int | bytes | None) -> int:
    returned: int = LIBC.syscall(
        ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    )
    return returned


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    zero = ctypes.c_ulong(0)
    checked(LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), zero, zero), f"prctl {option}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    checked(LIBC.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def read_only(path: str, recursive: bool = True) -> None:
    attributes = struct.pack("QQQQ", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    checked(
        syscall(SYS_MOUNT_SETATTR, -100, path.encode(), flags, attributes, len(attributes)), f"mount_setattr {path}"
    )


def own_namespaces() -> None:
    """Create new mount, process, network, IPC and host name namespaces.

    Without root, also a new user namespace, where this user is `nobody`.
    """
    uid, gid = os.geteuid(), os.getegid()
    apart = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    checked(LIBC.unshare(apart if uid == 0 else apart | NEWUSER), "unshare")
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {uid} 1"), ("gid_map", f"65534 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def own_root(readable: list[str], hidden: list[str], disk_bytes: int) -> None:
    """Set up a root with `readable`, read-only, and an empty /tmp of limited size that ends with the namespace.

    Args:
        readable: folders and files of the machine.
        hidden: folders inside them that are covered.
        disk_bytes: size of /tmp, in bytes.
    """
    checked(LIBC.unshare(NEWNS), "unshare")  # the launcher keeps its own view
    sources = {path: os.open(path, os.O_PATH) for path in readable}  # one of them may lie below the mount point
    root = "/tmp"
    mount("none", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path, source in sources.items():
        target = root + path
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)
        os.close(source)
        # Devices stay writable.
        if not path.startswith("/dev/"):
            read_only(target)
    for path in hidden:
        mount("none", root + path, "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=755")
        read_only(root + path)
    os.makedirs(root + "/tmp", exist_ok=True)
    os.chdir(root)
    checked(syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    checked(LIBC.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")
    mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={disk_bytes},nr_inodes=1024,mode=1777")
    read_only("/", recursive=False)


def become_nobody(number: int) -> None:
    """Change root's user to one that owns nothing: 2 000 000 000 + number, or nobody if that is not available."""
    if os.geteuid() != 0:
        return
    os.setgroups([])
    try:
        uid = 2_000_000_000 + number
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)


def bound_capabilities() -> None:
    """Remove the capabilities that running a program could gain. Must be called before the change of user."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            break  # after the last capability, or without the right to drop any


def drop_privileges() -> None:
    """Drop all capabilities, and forbid new privileges from running a program."""
    header, nothing = struct.pack("II", 0x20080522, 0), bytes(24)
    checked(LIBC.capset(header, nothing), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def landlock(readable: list[str], writable: list[str]) -> int:
    """Forbid opening files outside these folders; newer versions also forbid sockets and signals to outside processes.

    Returns:
        The kernel's version of Landlock.

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = checked(syscall(SYS_LANDLOCK_CREATE, None, 0, 1), "landlock")
    rights = ALL_RIGHTS[max(v for v in ALL_RIGHTS if v <= version)]
    # handled rights to files; TCP bind and connect from 4; abstract sockets and signals from 6
    attributes = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = checked(syscall(SYS_LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")
    truncate = 1 << 14 if version >= 3 else 0
    for paths, allowed in ((readable, READ), (writable, READ | WRITE | truncate)):
        for path in paths:
            folder = os.open(path, os.O_PATH)
            kept = allowed if os.path.isdir(path) else allowed & (1 << 1 | 1 << 2 | truncate)
            rule = struct.pack("=Qi", kept, folder)
            checked(syscall(SYS_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
            os.close(folder)
    checked(syscall(SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
    return version
