"""Settings of this process's memory allocator."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc reuse large freed blocks instead of returning them to the kernel, which would clear every page again.

    Training on a CPU allocates and frees the same activations in every pass. Does nothing without glibc.

    Returns:
        whether the setting took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, 2**30) for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
