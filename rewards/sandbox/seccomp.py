"""A filter of system calls, as a program for the kernel's packet filter: seccomp(2).

The launcher imports this module, so it uses the standard library only. The filter lists the refused calls, because
Python, threads and libraries need many others; calls of later kernels are refused as unknown.
"""

import ctypes
import errno
import platform
import struct

from kernel import LIBC, checked

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
#: refused calls: their numbers on x86_64 and aarch64, from the kernel's headers; -1 where the call does not exist
REFUSED = {
    # other processes' memory
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # the network, and memory that outlives a process or escapes its limits
    "socket": (41, 198), "memfd_create": (319, 279), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "splice": (275, 76), "tee": (276, 77), "vmsplice": (278, 75),
    # other programs
    "execve": (59, 221), "execveat": (322, 281),
    # name spaces and mounts
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "mknod": (133, -1), "mknodat": (259, 33),
    # large or rarely audited interfaces of the kernel
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_setup": (206, 0), "io_submit": (209, 2),
    "personality": (135, 92), "modify_ldt": (154, -1), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18), "uselib": (134, -1), "sysfs": (139, -1),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89),
    "quotactl": (179, 60), "syslog": (103, 116), "iopl": (172, -1), "ioperm": (173, -1), "vhangup": (153, 58),
}  # fmt: skip
#: also refused without a namespace: leaving the process group, by which all processes are killed, and slowing down
#: others
LEAVING = {
    "setsid": (112, 157), "setpgid": (109, 154),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "ioprio_set": (251, 30),
}  # fmt: skip
#: also refused if neither a namespace nor Landlock confines signals
SIGNALS = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
}  # fmt: skip
CLONE, PRLIMIT = (56, 220), (302, 261)
MMAP = (9, 222)
NEW_NAMESPACES = 0x7E020000
SHARED_ANONYMOUS = 0x21  # MAP_SHARED and MAP_ANONYMOUS
FIRST_NEW, NEW_ALLOWED = (
    424,
    (436, 437, 439, 441, 449, 452),
)  # close_range, openat2, faccessat2, epoll_pwait2, futex_waitv, fchmodat2

LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x50000


def program(machine: str, leaving: bool, signals: bool) -> bytes:
    """The filter's instructions.

    Args:
        machine: x86_64 or aarch64.
        leaving: also refuse LEAVING.
        signals: also refuse SIGNALS.
    """
    column, audit = MACHINES[machine]
    code: list[tuple[int, int, int, int]] = []

    def emit(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append((operation, if_true, if_false, value))

    def refuse(operation: int, value: int, reason: int) -> None:
        emit(operation, value, 0, 1)
        emit(RETURN, ERRNO | reason)

    emit(LOAD, 4)
    emit(EQUAL, audit, 1, 0)
    emit(RETURN, KILL)  # a 32-bit call, whose numbers have other meanings
    emit(LOAD, 0)
    if machine == "x86_64":
        refuse(AT_LEAST, 0x40000000, errno.ENOSYS)  # the same calls under other numbers (x32)
    for number in NEW_ALLOWED:
        emit(EQUAL, number, 0, 1)
        emit(RETURN, ALLOW)
    refuse(AT_LEAST, FIRST_NEW, errno.ENOSYS)  # among them clone3, without which the C library uses clone
    table = REFUSED | (LEAVING if leaving else {}) | (SIGNALS if signals else {})
    for numbers in table.values():
        if numbers[column] >= 0:
            refuse(EQUAL, numbers[column], errno.EPERM)
    emit(EQUAL, PRLIMIT[column], 0, 4)
    emit(LOAD, 16)  # process whose limits are set: only itself is allowed
    emit(EQUAL, 0, 1, 0)
    emit(RETURN, ERRNO | errno.EPERM)
    emit(LOAD, 0)
    # Memory shared without a file counts for none of the processes that have not touched it themselves.
    emit(EQUAL, MMAP[column], 0, 5)
    emit(LOAD, 40)  # its flags
    emit(AND, SHARED_ANONYMOUS)
    refuse(EQUAL, SHARED_ANONYMOUS, errno.EPERM)
    emit(LOAD, 0)
    emit(EQUAL, CLONE[column], 0, 3)
    emit(LOAD, 16)  # its flags
    refuse(ANY_BIT, NEW_NAMESPACES, errno.EPERM)
    emit(RETURN, ALLOW)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install(leaving: bool, signals: bool) -> None:
    """Filter the calls of this process and its children from now on. Needs no_new_privs.

    Raises:
        OSError: the kernel or the machine has no such filter.
    """
    machine = platform.machine()
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    code = ctypes.create_string_buffer(program(machine, leaving, signals))
    pointer = struct.pack("HxxxxxxP", (len(code) - 1) // 8, ctypes.addressof(code))
    zero = ctypes.c_ulong(0)
    checked(LIBC.prctl(22, ctypes.c_ulong(2), ctypes.create_string_buffer(pointer), zero, zero), "seccomp")
